#!/usr/bin/env bash
# Measures a model that no GPU holds, a Llama-3-70B shape with random weights made there, over four and eight GPUs of one host:
# milliseconds a call, memory, compile time, sums over devices alone, two groups of four beside one. Writes a record each:
#
#     bash scripts/measure/large_model.sh FOLDER
#
# On eight CPU devices, to see that it works:
#
#     SHAPE=llama-3.2-3b JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 \
#       bash scripts/measure/large_model.sh FOLDER --layers 1 --calls 2 --repeats 1 --bandwidth-gb 0.1 --rows 1 30 --batch 8
#
# Flags behind FOLDER go to bench_step.py. SHAPE, DTYPE and MESHES name others than llama-3-70b, bfloat16 and "4 8".
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash scripts/measure/large_model.sh FOLDER [flags of bench_step.py]" >&2; exit 2; }
folder=$1
shift
mkdir -p "$folder"
here=$(dirname "$0")
shape=${SHAPE:-llama-3-70b}
step=(python "$here/bench_step.py" --shape "$shape" --dtype "${DTYPE:-bfloat16}" --step-only)
for tensor in ${MESHES:-4 8}; do
  "${step[@]}" --mesh "data=1,tensor=$tensor" --weights dtype int8 --rows 1 30 64 --batch 1 8 \
    --output "$folder/step-$shape-tensor$tensor.json" "$@"
  # Where devices reach each other's memory: what a layer's two sums take at least.
  python "$here/../stress/exchange.py" --devices "$tensor" --rows 1 64 512 --widths 8192 --dtypes bfloat16 \
    --output "$folder/exchange-tensor$tensor.json" || echo "sums alone were not measured" >&2
done
"${step[@]}" --mesh data=2,tensor=4 --rows 1 --batch 16 --output "$folder/step-$shape-data2.json" "$@"
