r"""Evaluate a base or finetuned model on tasks of EleutherAI's evaluation harness (pip install "lm-eval[hf]").

    python eval/lm_eval_harness.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --precision bf16-true --eval_tasks "[truthfulqa_mc,hellaswag]" --batch_size 4 \
        --save_filepath results-openllama-7b.json

Add --lora_path out/lora/alpaca/lit_model_lora_finetuned.pth for a finetuned model, and --compare results-base.json for
the differences. `lm-eval ls tasks` lists the tasks. Their data come from the hub, or from files in --local_data
(README.md lists them). A task of your own is a file in --include_path:

    task: mine
    dataset_path: json
    dataset_kwargs: {data_files: {test: questions.jsonl}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{question}}"
    doc_to_choice: "{{choices}}"
    doc_to_target: answer
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("evaluate", __doc__)
