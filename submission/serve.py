r"""Serve a model as the NeurIPS 2023 LLM Efficiency Challenge asks for: /process, /tokenize, /decode and /health.

    python submission/serve.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --lora_path out/lora/alpaca/lit_model_lora_finetuned.pth --port 8080
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("serve", __doc__)
