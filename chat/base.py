"""Talk with a model, base or finetuned: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.

    python chat/base.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --lora_path out/lora/alpaca

From a pipe, every line is a question, and only the answers go to stdout:

    python chat/base.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b < questions.txt > answers.txt
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("chat", __doc__)
