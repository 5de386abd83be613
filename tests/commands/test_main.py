"""The commands as one program: which there are, its version, its cache, its exit codes."""

import argparse
import importlib.metadata
import os
import subprocess
import sys

import jax
import pytest
from support.commands import TEXT, assert_refused, text_of

from checkpoints_convert.cli import _parser as convert_parser
from checkpoints_convert.cli import main as convert
from jax_probe_mtp.commands.main import _parser, main
from jax_probe_mtp.generation.programs import kept


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "COMMAND"),
        (["translate"], "'translate'"),
        (["generate", "--prompt", "x"], "--model"),
        (["generate", "--model", "m"], "--prompt"),
        (["generate", "--model", "m", "--prompt", "x", "--input", "f.jsonl"], "not allowed with"),
        (["verify", "--model", "m", "--prompt", "x", "--num-masks", "2"], "--num-masks 2 needs a --tree"),
        (["verify", "--model", "m", "--prompt", "x", "--output", "f.jsonl"], "--output"),
        (
            ["verify", "--model", "m", "--prompt", "x", "--num-masks", "0"],
            "--num-masks 0 is plain decoding, with which",
        ),
        (
            ["generate", "--model", "m", "--prompt", "x", "--num-masks", "0", "--mask-ema", "0"],
            "--num-masks 0 is plain",
        ),
        (["generate", "--model", "m", "--prompt", "x", "--num-masks", "0", "--no-prune"], "--num-masks 0 is plain"),
        (["generate", "--model", "m", "--prompt", "x", "--logprobs"], "--logprobs is for --input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_commands(run, args, says):
    assert_refused(run(*args), says)


@pytest.mark.parametrize(("main", "name"), [(main, "jax-probe-mtp"), (convert, "checkpoints-convert")])
def test_the_version_is_one_line_installed_or_not(main, name, capsys, monkeypatch):
    for version in (importlib.metadata.version("jax-probe-mtp"), "unknown"):
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr() == (f"{name} {version}\n", "")
        monkeypatch.setattr(importlib.metadata, "version", not_installed)


def not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("parser", [_parser(), convert_parser()], ids=lambda parser: parser.prog)
def test_every_flag_has_a_help_that_shows_its_default(parser):
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        assert command.format_help()
        for action in command._actions:
            text = (action.help or "") % (vars(action) | {"prog": command.prog})
            assert text.strip(), f"{name} {action.dest}: no help"
            if not (action.default in (None, [], argparse.SUPPRESS) or action.default is False):
                assert f"(default: {action.default})" in text, f"{name} {action.dest}: no default"


def test_compiled_programs_are_kept_in_the_users_cache(run, tmp_path):
    bad = ["generate", "--model", "no/such/folder", "--prompt", "x"]
    before, ours = jax.config.jax_compilation_cache_dir, tmp_path / "cache" / "jax_probe_mtp"
    run(*bad)
    assert jax.config.jax_compilation_cache_dir == before  # somebody has set a folder: it stays
    assert kept._folder is None
    jax.config.update("jax_compilation_cache_dir", None)
    run(*bad)
    assert jax.config.jax_compilation_cache_dir == str(ours / "compiled")
    assert kept._folder == ours / "programs"


def test_as_a_program(model, expected):
    def run(*options):
        command = [sys.executable, "-m", "jax_probe_mtp", "generate", "--model", model, "--prompt", TEXT, *options]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False)
        return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")

    code, out, err = run("--no-chat-template", "--method", "ar", "--max-new-tokens", "2")
    assert code == 0, err
    assert out == text_of(expected["b"][0][:2]) + "\n"
    assert_refused(run("--tree", "x"), "got 'x'")


@pytest.mark.parametrize(("newest", "says"), [((0, 9), True), (jax.__version_info__[:2], False)])
def test_a_jax_newer_than_what_was_tested_gets_one_line(run, monkeypatch, newest, says):
    monkeypatch.setattr("jax_probe_mtp.commands.main.NEWEST_JAX", newest)
    _, _, err = run("generate", "--model", "nowhere", "--prompt", "x")
    line = f"JAX {jax.__version__} is newer than 0.9, the newest that was tested"
    assert (line in err.splitlines()) == says
