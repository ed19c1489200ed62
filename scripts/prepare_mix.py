"""Mix data sets by weight into one file of rows, and write data/NAME/mix.jsonl.

    python scripts/prepare_mix.py mix.yaml

The file names the sources, their weights or caps, templates and filters, how repeated rows are found, and the
evaluation sets that no row may have a passage in common with. `lit_gpt/data/mix.py` begins with an example.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare mix", __doc__)
