#!/usr/bin/env bash
# Runs the tests of what is compiled with the newest JAX that is allowed, where a Python is found that it has packages for.
# Its environment is .venv-newest; scripts/test.sh has the oldest Python's.
set -euo pipefail
cd "$(dirname "$0")/.."
for PYTHON in python3.14 python3.13 python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-4].*/bin/python none; do
  if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then break; fi
done
[ "$PYTHON" != none ] || { echo "no Python 3.12 or later: the newest JAX is not tested" >&2; exit 0; }
VENV=.venv-newest
rm -rf "$VENV"  # its packages are to be today's
source scripts/setup.sh
setup "[test]"
"$VENV/bin/python" -c 'import sys, jax; print(f"Python {sys.version.split()[0]}, JAX {jax.__version__}", file=sys.stderr)'
exec "$VENV/bin/pytest" --quiet --numprocesses 2 -m "not full_compile" \
  tests/kernels tests/model tests/decoding tests/drafting tests/generation tests/jobs/test_generate.py "$@"
