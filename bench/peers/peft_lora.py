"""LoRA with transformers and PEFT: their defaults, and the loss as `Trainer` asks for it."""

import torch
from common import arguments, train
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Runs the job."""
    args = arguments(__doc__)
    job, lora = args.job, args.job["lora"]
    with torch.device(job["device"]):
        if job["random_weights"]:
            config = AutoConfig.from_pretrained(args.checkpoint_dir)
            model = AutoModelForCausalLM.from_config(config, dtype=args.dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(args.checkpoint_dir, dtype=args.dtype)
    model.config.use_cache = False
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = ["q_proj", "v_proj"] if "q_proj" in names else ["query_key_value"]  # some families have them in one layer
    settings = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, settings).to(job["device"]).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=job["weight_decay"], fused=True)  # Trainer's default

    def part(ids_BT: Tensor, labels_BT: Tensor, mask_BT: Tensor, targets: int) -> Tensor:
        loss = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, num_items_in_batch=targets).loss
        loss.backward()
        return loss

    train(args, optimizer, trained, part, ["transformers", "peft"])


if __name__ == "__main__":
    main()
