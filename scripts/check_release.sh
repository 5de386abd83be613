#!/usr/bin/env bash
# Builds the wheel and the sdist, checks what they hold, and runs the README's Python from the wheel in an empty environment,
# on a tiny model made on the spot. Leaves both in dist/. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy of what git knows or would add: nothing that an earlier build left is built again.
mkdir "$work/checkout"
git ls-files -z --cached --others --exclude-standard --deduplicate |
  while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
  tar --null -T - -c | tar -x -C "$work/checkout"

"${PYTHON:-python3}" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build twine
echo "building" >&2
"$work/build/bin/python" -m build --outdir "$work/dist" --sdist --wheel "$work/checkout" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mkdir "$work/again"
tar -xzf "$work"/dist/*.tar.gz -C "$work/again" --strip-components 1
"$work/build/bin/python" -m build --outdir "$work/dist-again" --wheel "$work/again" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
"$work/build/bin/python" -m twine check --strict "$work"/dist/*
"$work/build/bin/python" - "$work" <<'PYTHON'
import glob, pathlib, re, sys, tarfile, zipfile

work = pathlib.Path(sys.argv[1])
checkout = work / "checkout"
PACKAGES = ("jax_probe_mtp", "checkpoints_convert")
ours = {str(path.relative_to(checkout)) for name in PACKAGES for path in (checkout / name).rglob("*") if path.is_file()}


def files_of(folder):
    """The wheel's files by name; its own metadata is under one name, whatever the version."""
    [wheel] = glob.glob(f"{folder}/*.whl")
    with zipfile.ZipFile(wheel) as file:
        return {re.sub(r"^[\w.-]+\.dist-info/", "dist-info/", name): file.read(name) for name in file.namelist()}


faults = []


def check_same(what, held, expected):
    faults.extend(f"{what} lacks {name}" for name in sorted(expected - held))
    faults.extend(f"{what} holds {name}, which it should not" for name in sorted(held - expected))


wheel, again = files_of(work / "dist"), files_of(work / "dist-again")
metadata = {f"dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "entry_points.txt")}
check_same("the wheel", set(wheel), ours | metadata | {"dist-info/licenses/LICENSE"})
check_same("the sdist's wheel", set(again), set(wheel))
faults += [f"the sdist's wheel has another {name}" for name in wheel.keys() & again.keys() if wheel[name] != again[name]]
[sdist] = glob.glob(f"{work}/dist/*.tar.gz")
with tarfile.open(sdist) as file:
    held = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
made = {name for name in held if name.startswith("jax_probe_mtp.egg-info/")} | {"PKG-INFO", "setup.cfg"}
check_same("the sdist", held, ours | made | {"pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"})
data = sorted(name for name in ours if not name.endswith(".py"))
print(f"wheel: {len(wheel)} files, of them data: {', '.join(data)}")
print(f"sdist: {len(held)} files; the wheel built from it has the same")
print("\n".join(faults) or "both hold what they should")
sys.exit(bool(faults))
PYTHON

"${PYTHON:-python3}" -m venv "$work/empty"
echo "installing the wheel into an empty environment" >&2
"$work/empty/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/dist/*.whl
checkout=$PWD
cd "$work"
"$work/empty/bin/jax-probe-mtp" --version
"$work/empty/bin/checkpoints-convert" --help >/dev/null
JAX_PLATFORMS=cpu "$work/empty/bin/python" - "$checkout" <<'PYTHON'
import pathlib, re, sys

import jax
import jax_probe_mtp
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import random_params

checkout = pathlib.Path(sys.argv[1])
assert checkout not in pathlib.Path(jax_probe_mtp.__file__).parents, "this is the checkout, not the wheel"
sys.path.append(str(checkout / "tests"))  # behind the installed packages
from checkpoints import EOS, make_tokenizer, write_folder  # noqa: E402

cfg = ModelConfig(
    family="llama", vocab_size=61, width=24, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, mlp_width=40,
    context_length=512, norm_eps=1e-5, rope_theta=10_000.0,
)
tiny = jax_probe_mtp.Checkpoint(
    params=random_params(cfg, jax.random.key(3)), config=cfg, tokenizer=make_tokenizer(61), eos_token_ids=(EOS,), name="tiny"
)
model = write_folder(pathlib.Path("tiny"), tiny)
blocks = re.findall(r"```python\n(.*?)```", (checkout / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
assert blocks, "the README has no Python"
names = {}
for block in blocks:
    assert names or "HuggingFaceTB/SmolLM2-135M-Instruct" in block
    exec(block.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model)), names)
PYTHON
"$work/empty/bin/python" -m pip check --disable-pip-version-check
mkdir -p "$checkout/dist"
cp "$work"/dist/* "$checkout/dist/"
echo "in dist/: $(ls "$work/dist" | tr '\n' ' ')"
