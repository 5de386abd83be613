#!/usr/bin/env bash
# Compiles for TPUs, without one, and checks what the compiler made. libtpu lies in a folder of its own, so that nothing else
# finds it. Run scripts/test.sh before: this uses its environment.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
[ -x "$VENV/bin/pytest" ] || { echo "no $VENV/bin/pytest: run scripts/test.sh first" >&2; exit 2; }
needed=$("$VENV/bin/python" -c '
import importlib.metadata
print(next(line.split(";")[0] for line in importlib.metadata.requires("jax") if line.startswith("libtpu")))')
echo "installing $needed into $VENV/libtpu" >&2
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$VENV/libtpu" "$needed"
PYTHONPATH="$VENV/libtpu" exec "$VENV/bin/pytest" --quiet -m full_compile tests/scripts/measure/test_compiled_step.py "$@"
