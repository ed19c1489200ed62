r"""Finetune a model with LoRA: low-rank updates of the attention's query and value projections (arXiv 2106.09685).

    python finetune/lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --data_dir data/alpaca --out_dir out/lora/alpaca --precision bf16-true

The defaults below are the ones to try first when a result is to be better; every flag overrides them.
"""

from lit_gpt.cli import launch

learning_rate = 3e-4
batch_size = 128  # samples of one update
micro_batch_size = 4  # samples of an iter
weight_decay = 0.01
lora_r = 8
lora_alpha = 16
lora_dropout = 0.05
lora_query = True
lora_key = False
lora_value = True
lora_projection = False
lora_mlp = False
lora_head = False

if __name__ == "__main__":
    constants = {name: value for name, value in globals().items() if isinstance(value, (bool, int, float))}
    launch("finetune lora", __doc__, **constants)
