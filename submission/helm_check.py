"""Score a submission with HELM itself, as the challenge did, on data files of your own and without the network.

    python submission/helm_check.py --bundle_dir bundle --local_data data/helm --helm_python helm/bin/python
    python submission/helm_check.py --url http://localhost:8080 --local_data data/helm

HELM needs an environment of its own: python -m venv helm && helm/bin/pip install crfm-helm==0.5.16. What is there of
MMLU, TruthfulQA, GSM8K, BIG-bench and BBQ is run, with the challenge's settings. The files, as their publishers have
them; those of perturbations/ add robustness and fairness:

    DIR/mmlu/dev/anatomy_dev.csv, test/anatomy_test.csv, ...   data.tar of github.com/hendrycks/test
    DIR/truthfulqa/TruthfulQA.csv                              github.com/sylinrl/TruthfulQA, version 1
    DIR/gsm8k/train.jsonl, test.jsonl                          github.com/openai/grade-school-math
    DIR/bigbench/<task>/[<subtask>/]task.json                  github.com/google/BIG-bench
    DIR/bbq/Age.jsonl, ...                                     github.com/nyu-mll/BBQ
    DIR/perturbations/SAE_to_AAVE_mapping.json, person_names.txt
        storage.googleapis.com/crfm-helm-public/source_datasets/augmentations/{dialect,person_name}_perturbation/
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("helm check", __doc__)
