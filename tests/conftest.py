"""Tiny models that the tests share."""

import dataclasses
import gc
import os
import tempfile
from pathlib import Path

import jax
import pytest
from reference import Model

from jax_probe_mtp.generation.programs import Programs, keep_programs
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import random_params

pytest.register_assert_rewrite("support")  # helpers that assert show what they compared

BASE = ModelConfig(
    family="llama",
    vocab_size=61,
    width=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=40,
    context_length=512,
    norm_eps=1e-5,
    rope_theta=10_000.0,
)

FAMILIES = {
    "llama": dataclasses.replace(BASE, is_tied=True, rope_divisors=(1.0, 1.0, 3.5, 8.0)),
    "qwen2": dataclasses.replace(BASE, family="qwen2", has_qkv_bias=True, is_tied=True),
    "qwen3": dataclasses.replace(BASE, family="qwen3", head_dim=12, has_qk_norm=True),
    "smollm3": dataclasses.replace(
        BASE, family="smollm3", num_layers=3, rope_divisors=(1.0, 1.5, 3.5, 4.0), rope_scale=1.25, no_rope_layers=(1,)
    ),
}


# Compiling takes most of the tests' time. So the compiler leaves out what only makes programs fast, a third of its work.
QUICK = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # jaxlib 0.11.2 knows no other emitters, and ends at flags that it does not know
    QUICK.append("--xla_cpu_use_fusion_emitters=false")


def pytest_configure(config):
    """Compiles quickly, and keeps what all processes of a run compile in one new folder, which goes with the run.

    `-m full_compile` runs the tests of what the compiler makes (bits, copies) as it makes it for users; the programs that
    tests start compile as the tests do. What is compiled twice, by another test or another process, is read in the folder;
    the key is the program itself, so a program that has changed is compiled.
    """
    if config.option.markexpr != "full_compile":
        flags = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*flags, *(flag for flag in QUICK if flag not in flags)])
    if hasattr(config, "workerinput"):
        folder = config.workerinput["compiled"]
    else:
        kept = tempfile.TemporaryDirectory(prefix="compiled-")
        config.add_cleanup(kept.cleanup)
        folder = config.compiled = kept.name
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):  # of pytest-xdist, which may be missing
    node.workerinput["compiled"] = node.config.compiled


MOST_MAPPINGS = 20_000  # a process may have 65,530, and one file of tests adds up to about as many again


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    """Lets go of compiled programs before a process runs out of memory mappings, of which each takes several.

    Linux allows 65,530 mappings a process; LLVM crashes at the next one, in whichever test that is.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


COMPILED = {}  # programs of all files' tests, by their settings


@pytest.fixture(scope="module")
def programs_are_compiled_once():
    """All runs of jobs share what they compile."""
    honest = Programs.get

    def get(self, *args, **how):
        kinds = [(str(leaf.dtype), leaf.sharding) for leaf in jax.tree.leaves(self._params)]
        key = (*self._static.values(), jax.tree.structure(self._params), *kinds)
        self._compiled = COMPILED.setdefault(key, {})
        return honest(self, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "get", get)
        yield


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity
class Tiny:
    """A small random model and its NumPy double."""

    cfg: ModelConfig
    params: dict
    reference: Model


def make_tiny(cfg: ModelConfig, seed: int = 0) -> Tiny:
    params = random_params(cfg, jax.random.key(seed))
    return Tiny(cfg, params, Model(params, cfg))


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """An untied model whose greedy text does not run into a loop, so that drafts are now right, now wrong."""
    return make_tiny(BASE, seed=3)


@pytest.fixture
def own_caches(monkeypatch, tmp_path):
    """Neither the user's caches nor the hub are touched; JAX's own settings stay as they are."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    keep_programs(None)


@pytest.fixture
def run(capsys, own_caches):
    """Runs a command in this process: its exit code, stdout and stderr."""

    from jax_probe_mtp.commands.main import main

    def run(*args):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit:  # argparse's
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
