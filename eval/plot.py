"""Draw results of evaluations as a bar chart with error bars, and print them as a Markdown table.

    python eval/plot.py results-base.json results-lora.json --out results.png --names "[base,LoRA]"

The files are those of eval/lm_eval_harness.py --save_filepath. The chart shows one score for each task or group, the
table all of them, with standard errors.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("plot", __doc__)
