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
# First what a program computes, compiled quickly (tests/conftest.py), then what the compiler makes of it for users. Of the
# tests that the arguments name there may be none in one of them: pytest then ends with 5.
for kind in "not full_compile" full_compile; do
  "$VENV/bin/pytest" --quiet --numprocesses 2 -m "$kind" "$@" || { status=$?; [ $status = 5 ] || exit $status; }
done
