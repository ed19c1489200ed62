"""Generation with litgpt as its own script does it: its GPT with a static cache, one token at a time."""

import torch
from decoding import arguments, measure
from lightning import Fabric
from litgpt.config import Config
from litgpt.generate.base import batched_generate_fn, generate_fn
from litgpt.model import GPT
from litgpt.utils import load_checkpoint


def main() -> None:
    """Runs the job."""
    args = arguments(__doc__)
    job = args.job
    fabric = Fabric(accelerator=job["device"], devices=1, precision="bf16-true")
    if job["random_weights"]:
        config = Config.from_name(job["litgpt_name"])
    else:
        config = Config.from_file(f"{job['litgpt_checkpoint']}/model_config.yaml")
    with fabric.init_module(empty_init=not job["random_weights"]):
        model = GPT(config)
    prompts = torch.tensor(job["prompts"], device=fabric.device)
    with fabric.init_tensor():
        model.max_seq_length = prompts.size(1) + job["new_tokens"]
        model.set_kv_cache(batch_size=len(prompts))
    model.eval()
    model = fabric.setup_module(model)
    if not job["random_weights"]:
        load_checkpoint(fabric, model, f"{job['litgpt_checkpoint']}/lit_model.pth")

    def generate(count: int) -> list[list[int]]:
        end = prompts.size(1) + count
        if len(prompts) == 1:
            options = {"temperature": 0.0, "include_prompt": False, "include_eos": True}
            return [[int(token) for token in generate_fn(model, prompts[0], end, **options)]]
        options = {"sample_args": {"temperature": 0.0}, "include_prompt": False, "include_eos": True}
        rounds = list(batched_generate_fn(model, prompts, end, **options))
        return [[int(tokens[row]) for tokens in rounds] for row in range(len(prompts))]

    read = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "wte" not in name)
    measure(args, generate, read, ["litgpt", "lightning"])


if __name__ == "__main__":
    main()
