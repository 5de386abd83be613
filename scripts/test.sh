#!/usr/bin/env bash
# Everything that CI checks: sets up .venv, then lint, types and the tests against the installed package.
# Arguments go to pytest: scripts/test.sh tests/decoding/test_verify.py -k depth
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup "[test,dev,torch]"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
exec "$VENV/bin/pytest" --quiet --numprocesses 2 "$@"
