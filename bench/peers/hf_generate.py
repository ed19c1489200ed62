"""Generation with transformers: `generate` with its defaults, greedy."""

import torch
from decoding import arguments, measure
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Runs the job."""
    args = arguments(__doc__)
    job = args.job
    with torch.device(job["device"]):
        if job["random_weights"]:
            config = AutoConfig.from_pretrained(job["checkpoint_dir"])
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        else:
            model = AutoModelForCausalLM.from_pretrained(job["checkpoint_dir"], dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    prompts = torch.tensor(job["prompts"], device=job["device"])

    def generate(count: int) -> list[list[int]]:
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)[
            :, prompts.size(1) :
        ].tolist()

    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    read = sum(p.numel() * p.element_size() for p in model.parameters() if tied or p is not embedding)
    measure(args, generate, read, ["transformers"])


if __name__ == "__main__":
    main()
