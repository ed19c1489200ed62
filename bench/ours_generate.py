"""The worker of bench/generate.py for this project: what generate/base.py does, with or without a checkpoint's weights.

Run with the folder bench/peers on the path.
"""

from pathlib import Path

import torch
from decoding import arguments, measure
from gpu_train import random_weights

from lit_gpt import checkpoint
from lit_gpt.decode import Rows, complete
from lit_gpt.quantize import for_decoding


def main() -> None:
    """Runs the job."""
    args = arguments(__doc__)
    job = args.job
    if job["random_weights"]:
        checkpoint.open_weights, checkpoint.prove_weights = random_weights, lambda folder: None
    folder = Path(job["checkpoint_dir"])
    model = checkpoint.load_gpt(folder, torch.bfloat16, quantize=job["quantize"], device=job["device"])
    for_decoding(model)
    if job["compile"]:
        model.compile_steps()
    Rows.graphs = job["graph"]
    kept = {id(x): x for x in [*model.parameters(), *model.buffers()]}
    if not model.config.tie_embeddings:
        del kept[id(model.wte.weight)]
    for layer in model.modules():  # the scales of bitsandbytes' layers are no buffers
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        kept |= {id(state.absmax): state.absmax} if state is not None else {}
    read = sum(x.numel() * x.element_size() for x in kept.values())
    packages = ["bitsandbytes"] if (job["quantize"] or "").startswith("bnb") else []
    measure(args, lambda count: complete(model, job["prompts"], count), read, packages)


if __name__ == "__main__":
    main()
