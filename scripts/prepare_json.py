r"""Prepare a JSON or JSON-lines file of your own for finetuning, and write data/NAME.

A row has `instruction`, `output` and, if you like, `input`. Where they are called otherwise, say so with --map:

    python scripts/prepare_json.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --data_file questions.jsonl --map instruction=question,output=answer
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare json", __doc__)
