r"""Prepare rows of your own for finetuning, and write data/NAME: JSON, JSON lines, Parquet, also with gzip.

Read are a file, a folder, a pattern, or a data set on the hub. A row has `instruction`, `output` and, if you like,
`input`; or `prompt` and `completion`; or `text`; or a conversation: `messages` with `role` and `content`, or
`conversations` with `from` and `value`. Where keys are called otherwise, say so with --map:

    python scripts/prepare_json.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --data_file questions.jsonl --map instruction=question,output=answer
    python scripts/prepare_json.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --repo_id HuggingFaceH4/no_robots
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare json", __doc__)
