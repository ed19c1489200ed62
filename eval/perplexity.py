r"""How well a base or finetuned model predicts a text: tokens, nats per token, bits per byte, perplexity.

    python eval/perplexity.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b --text_file book.txt
    python eval/perplexity.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --lora_path out/lora/alpaca --data_dir data/alpaca

Bits per byte compare models with different tokenizers; nats per token and perplexity do not. Of a prepared data set the
answers are predicted, as in validation; of a text all tokens, in windows of the model's context.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("perplexity", __doc__)
