#!/usr/bin/env bash
# Compares two GPUs of one host with one of them: tokens of every way of drafting, milliseconds a call, sums alone, a whole job.
#
#     bash scripts/measure/two_gpus.sh FOLDER MODEL SMALL_MODEL QUESTIONS.jsonl
#
# MODEL's kv heads divide by two (Qwen2.5-Coder-0.5B); SMALL_MODEL decodes the questions 20 times over in a job (SmolLM2). Each
# measurement writes a record, and one that fails costs only its own. On two CPU devices, to see that it works:
#
#     SHAPE=tiny LAYERS=2 STEP=tiny LARGE= LIMIT=2 TIMES=1 JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 \
#       bash scripts/measure/two_gpus.sh FOLDER MODEL SMALL_MODEL QUESTIONS.jsonl
#
# There the sums are refused, and exact answers of two programs may differ.
set -uo pipefail
[ $# = 4 ] || { echo "usage: bash scripts/measure/two_gpus.sh FOLDER MODEL SMALL_MODEL QUESTIONS.jsonl" >&2; exit 2; }
folder=$1 model=$2 small=$3 questions=$4
here=$(dirname "$0")
mkdir -p "$folder"
failed=()
run() { # name, command...
  echo "== $1" >&2
  "${@:2}" || failed+=("$1")
}

# Which tokens: random weights in all ways, then a checkpoint, then its exact mode against plain decoding at one row.
meshes() { # several processes on the same GPUs, each of which takes a little memory
  run "$1" env XLA_PYTHON_CLIENT_PREALLOCATE=false \
    python "$here/../stress/meshes.py" --processes "${PROCESSES:-4}" --output "$folder/$1.json" "${@:2}"
}
meshes tokens-random --shape "${SHAPE:-qwen2.5-0.5b}" --layers "${LAYERS:-4}"
meshes tokens --model "$model" --input "$questions" --limit "${LIMIT:-12}" --max-new-tokens 64
meshes tokens-exact --model "$model" --input "$questions" --limit "${LIMIT:-12}" --max-new-tokens 64 --exact --meshes tensor=2 data=2
[ -z "${LARGE-llama-3-70b}" ] || meshes tokens-wide --shape "${LARGE-llama-3-70b}" --layers 2 --formats float32 --meshes tensor=2 \
  --drafts plain probe:14 recycle:30 --processes 1

# Milliseconds a call, in the ordinary and the exact mode.
step() { run "$1" python "$here/bench_step.py" --step-only --calls 32 --output "$folder/$1.json" "${@:2}"; }
for attention in auto anchored; do
  step "step-one-$attention" --shape "${STEP:-llama-3-8b}" --rows 1 30 64 --attention $attention
  step "step-tensor2-$attention" --shape "${STEP:-llama-3-8b}" --rows 1 30 64 --attention $attention --mesh data=1,tensor=2
done
step step-batch8 --shape "${STEP:-llama-3-8b}" --rows 1 30 --batch 8
step step-data2 --shape "${STEP:-llama-3-8b}" --rows 1 30 --batch 16 --mesh data=2,tensor=1
if [ -n "${LARGE-llama-3-70b}" ]; then
  step step-32b --shape qwen3-32b --rows 1 30 64 --mesh data=1,tensor=2
  step step-70b-int8 --shape llama-3-70b --rows 1 30 64 --weights int8 --mesh data=1,tensor=2
  step step-70b --shape llama-3-70b --rows 1 30 64 --mesh data=1,tensor=2 # 141 GB
fi
run sums python "$here/../stress/exchange.py" --devices 2 --rows 1 30 64 --widths 4096 8192 --dtypes bfloat16 --output "$folder/sums.json"

# A job, from the first prefill to the last answer.
job() { run "$1" python "$here/throughput.py" --model "$small" --input "$questions" --dtype bfloat16 --drafts probe:14 \
  --max-new-tokens 100 --times "${TIMES:-20}" --output "$folder/$1.json" "${@:2}"; }
job job-one --batch-sizes 16
job job-data2 --batch-sizes 32 --mesh data=2

[ ${#failed[@]} = 0 ] || { echo "failed, or with other tokens than it should: ${failed[*]}" >&2; exit 1; }
