"""LoRA with litgpt as its own finetuning script does it: its GPT, Fabric, and cross-entropy in chunks."""

from common import IGNORED, arguments, train
from lightning import Fabric
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer, load_checkpoint
from torch import Tensor


def main() -> None:
    """Runs the job."""
    args = arguments(__doc__)
    job, lora = args.job, args.job["lora"]
    fabric = Fabric(accelerator=job["device"], devices=1, precision=job["precision"])
    fabric.launch()
    on = {"lora_r": lora["r"], "lora_alpha": lora["alpha"], "lora_dropout": lora["dropout"]}
    on |= {"lora_query": True, "lora_key": False, "lora_value": True, "lora_projection": False}
    if job["random_weights"]:
        config = Config.from_name(job["litgpt_name"], **on)
    else:
        config = Config.from_file(args.checkpoint_dir / "model_config.yaml", **on)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
        if job["random_weights"]:
            model.apply(model._init_weights)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), weight_decay=job["weight_decay"])
    optimizer = fabric.setup_optimizers(optimizer)
    if not job["random_weights"]:
        load_checkpoint(fabric, model, args.checkpoint_dir / "lit_model.pth", strict=False)
    model.max_seq_length = max(len(sample["ids"]) for step in job["steps"] for sample in step)
    model.train()

    def part(ids_BT: Tensor, labels_BT: Tensor, mask_BT: Tensor, targets: int) -> Tensor:
        logits = model(ids_BT, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        labels_BT = labels_BT[..., 1:]
        loss = chunked_cross_entropy(logits, labels_BT) * ((labels_BT != IGNORED).sum() / targets)
        fabric.backward(loss)
        return loss

    train(args, optimizer, list(model.parameters()), part, ["litgpt", "lightning"])


if __name__ == "__main__":
    main()
