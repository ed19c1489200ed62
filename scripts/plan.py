"""What finetuning would take on the challenge's cards, an A100 with 40 GB and an RTX 4090: memory and hours.

    python scripts/plan.py config_hub/4090/*.yaml

Neither the model nor the data need to be there, nor a GPU. Memory is what the finetuning itself plans with. The hours
come from a model of the speed (lit_gpt/challenge/cards.py); nothing was measured on these cards.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("plan", __doc__)
