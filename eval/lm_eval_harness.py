r"""Evaluate a base or finetuned model on tasks of EleutherAI's evaluation harness (pip install "lm-eval[hf]").

    python eval/lm_eval_harness.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --precision bf16-true --eval_tasks "[truthfulqa_mc,hellaswag]" --batch_size 4 \
        --save_filepath results-openllama-7b.json

Add --lora_path out/lora/alpaca/lit_model_lora_finetuned.pth for a finetuned model. `lm-eval ls tasks` lists the tasks.
Their data come from the hub. Without network, a task file in --include_path can read local data:

    include: <folder of the lm_eval package>/tasks/truthfulqa/truthfulqa_mc1.yaml
    task: truthfulqa_mc1
    dataset_path: json
    dataset_name: null
    dataset_kwargs: {data_files: {validation: truthfulqa_mc.jsonl}}
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("evaluate", __doc__)
