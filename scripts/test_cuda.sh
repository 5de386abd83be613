#!/usr/bin/env bash
# Compiles for an H100, without one, and checks what the compiler made. JAX's CUDA plugin lies in a folder of its own, so that
# nothing else finds it. Run scripts/test.sh before: this uses its environment.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
[ -x "$VENV/bin/pytest" ] || { echo "no $VENV/bin/pytest: run scripts/test.sh first" >&2; exit 2; }
version=$("$VENV/bin/python" -c 'import jaxlib; print(jaxlib.__version__)')
echo "installing JAX's CUDA plugin $version into $VENV/cuda" >&2
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$VENV/cuda" \
  "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version"
PYTHONPATH="$VENV/cuda" exec "$VENV/bin/pytest" --quiet -m full_compile tests/scripts/measure/test_compiled_cuda.py "$@"
