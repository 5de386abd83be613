# Sourced by demo.sh and test.sh: makes a virtual environment and installs this checkout into it, from a bare Python 3.11+.
#
#   setup EXTRAS    such as "[test,dev]", or "" for the runtime alone
#
# PYTHON chooses the interpreter, VENV the folder (.venv). An environment that is there is brought up to date.

setup() {
  local extras=$1
  VENV=${VENV:-.venv}
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  echo "installing jax-probe-mtp$extras into $VENV" >&2
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check ".$extras"
  # An installed copy of the same version would otherwise stay in place of a changed checkout.
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
}
