"""What saving costs: the time of a checkpoint, as a share of the training between two of them.

    python bench/checkpoints.py --checkpoint_dir checkpoints/EleutherAI/pythia-160m --data_dir data/alpaca_libre

Runs finetune/lora.py with a checkpoint after every step; says what the share is at the default interval.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from lit_gpt.files import read_json
from lit_gpt.finetune import Finetune

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Runs and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12, help="[%(default)s]")
    parser.add_argument("--batch_size", type=int, default=16, help="samples of a step [%(default)s]")
    parser.add_argument("--out_dir", type=Path, help="on the disk that is to be measured [a temporary folder]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.out_dir) as folder:
        command = [sys.executable, "finetune/lora.py", "--checkpoint_dir", args.checkpoint_dir.resolve()]
        command += ["--data_dir", args.data_dir.resolve(), "--out_dir", folder, "--max_steps", str(args.steps)]
        command += ["--batch_size", str(args.batch_size), "--save_interval", "1", "--eval_iters", "1"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        result = read_json(Path(folder, "run.json"))["result"]
    step, save = result["seconds"] / result["steps"], result["saving"] / result["saves"]
    (interval,) = (field.default for field in dataclasses.fields(Finetune) if field.name == "save_interval")
    print(
        f"a step of {args.batch_size} samples takes {step:.2f} s, a checkpoint {save:.3f} s: "
        f"{save / (interval * step):.2%} of the training time at the default interval of {interval} steps"
    )


if __name__ == "__main__":
    main()
