#!/usr/bin/env bash
# From a bare Python to a real model's answers: sets up .venv, fetches SmolLM2-135M-Instruct (98 MB), generates and compares.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup ""
exec "$VENV/bin/jax-probe-mtp" demo
