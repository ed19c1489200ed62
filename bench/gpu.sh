#!/usr/bin/env bash
# The measurements on a GPU, in one go, in under ten minutes, on a machine with no network.
#
#   TOKENIZER_DIR=checkpoints/openlm-research/open_llama_7b bash bench/gpu.sh pack     here, with network
#   GPU_FILES=gpu_files bash bench/gpu.sh run [full] [compare] [curves] [tests] [decode]   there
#
# `pack` fills the folder GPU_FILES (to be carried there beside the repository) with what the machine lacks: the model's
# config.json and a tokenizer, prepared data, and wheels of packages that plain PyTorch images do not have. The weights
# are random. `run` puts a JSON file and a Markdown table per part into OUT:
#   full     the engine over 20,000 samples
#   compare  every way to run it, and the peers, on the same first steps
#   curves   packed, padded, recomputing and compiled runs without dropout: their losses agree within bf16 noise
#   tests    tests/test_gpu.py: what only a GPU can show
#   decode   generation: one text and eight, quantised, with and without a CUDA graph, and the peers
# All of them have 600 seconds; what a part has measured when its time is up is shown.
#
# Other settings: MODEL (name in the catalogue), DATA_FILE ("[a.jsonl,b.jsonl]" instead of a download), PYTHON,
# TARGET (version of the Python there), COMMIT (where the copy there has no .git), and for a rehearsal on a small model
# DEVICE=cpu, FULL_STEPS, STEPS, BATCH, NEW_TOKENS.
set -euo pipefail
cd "$(dirname "$0")/.."
files=${GPU_FILES:-gpu_files} out=${OUT:-${GPU_FILES:-gpu_files}/results}
model=${MODEL:-open_llama_7b} python=${PYTHON:-python3} device=${DEVICE:-cuda}

pack() {
    mkdir -p "$files/$model" "$files/wheels"
    cp "$TOKENIZER_DIR"/tokenizer* "$files/$model/"
    "$python" - "$model" > "$files/$model/config.json" <<'PYTHON_END'
import json
import sys

from lit_gpt.families.catalogue import find

print(json.dumps(find(sys.argv[1]).config, indent=2))
PYTHON_END
    "$python" scripts/prepare_alpaca_libre.py --checkpoint_dir "$files/$model" --destination_path "$files/data" \
        ${DATA_FILE:+--data_file "$DATA_FILE"} --skip_bad_rows true
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$files/wheels" \
        --python-version "${TARGET:-3.12}" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64 \
        jsonargparse docstring_parser typeshed_client importlib_resources bitsandbytes==0.50.2 litgpt==0.5.13
    du -sh "$files"
}

# part NAME SECONDS FLAGS...: a table; what was measured when the time is up is shown all the same
part() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name ($(date +%T))" >&2
    timeout "$seconds" "$python" bench/train.py --checkpoint_dir "$files/$model" --data_dir "$files/data" \
        --random_weights --litgpt_name "$model" --litgpt_python "$python" --device "$device" --peak_tflops 989 \
        --rounds 1 --batch_size "${BATCH:-128}" --results "$out/gpu-$name.json" "$@" > /dev/null || true
    "$python" bench/train.py --show --results "$out/gpu-$name.json" | tee "$out/gpu-$name.md" || true
}

# decode SECONDS: the same of generation
decode() {
    echo "== decode ($(date +%T))" >&2
    timeout "$1" "$python" bench/generate.py --checkpoint_dir "$files/$model" --random_weights --device "$device" \
        --litgpt_name "$model" --litgpt_python "$python" --rounds 1 --repeats 1 --new_tokens "${NEW_TOKENS:-128}" \
        --systems ours,ours-eager,ours-8,ours-nf4,ours-int4,ours-int8,ours-compile,transformers,litgpt \
        --results "$out/gpu-decode.json" > /dev/null || true
    "$python" bench/generate.py --show --results "$out/gpu-decode.json" | tee "$out/gpu-decode.md" || true
}

run() {
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$files"/wheels/*.whl
    export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    mkdir -p "$out"
    for name in "$@"; do
        case $name in
            full) part full 130 --systems ours --steps "${FULL_STEPS:-157}" ;;
            compare) part compare 230 --steps "${STEPS:-3}" --skip 1 --systems \
                ours,ours-17.5,ours-low_memory,ours-nf4-dq,ours-compile,ours-compile-17.5,peft,litgpt,ours-unshared ;;
            curves) part curves 90 --steps "${STEPS:-3}" --skip 1 --lora_dropout 0 \
                --systems ours,ours-padded,ours-low_memory,ours-compile ;;
            tests) timeout -s INT 75 "$python" -m pytest -p no:cacheprovider tests/test_gpu.py 2>&1 |
                tee "$out/gpu-tests.txt" || true ;;
            decode) decode 75 ;;
        esac
    done
}

case ${1:-run} in
    pack) pack ;;
    run)
        shift || true
        [ $# -gt 0 ] || set -- full compare curves tests decode
        for name in "$@"; do
            case $name in full | compare | curves | tests | decode) ;; *) echo "error: no part '$name'" >&2 && exit 2 ;; esac
        done
        run "$@"
        ;;
    *) echo "error: '$1' is neither pack nor run" >&2; exit 2 ;;
esac
