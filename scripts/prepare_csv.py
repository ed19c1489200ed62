r"""Prepare a CSV or TSV file of your own for finetuning, and write data/NAME.

Its first line names the columns: `instruction`, `output` and, if you like, `input`. Where they are called otherwise,
say so with --map:

    python scripts/prepare_csv.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --data_file questions.csv --map instruction=question,output=answer

A folder, a pattern, and all other kinds of files that prepare_json.py reads will do as well.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare csv", __doc__)
