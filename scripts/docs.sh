#!/usr/bin/env bash
# Builds the documentation into site/, from docs/ and the docstrings. A broken link, anchor or page is an error. Arguments go to
# mkdocs build. Its environment is .venv-docs, with the extra `docs` alone: the package is read, not imported.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv-docs}
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
mapfile -t needed < <("$VENV/bin/python" -c '
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")')
echo "installing ${needed[*]} into $VENV" >&2
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${needed[@]}"
NO_MKDOCS_2_WARNING=1 exec "$VENV/bin/mkdocs" build --clean "$@"
