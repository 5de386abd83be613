"""How commands end: what they raise becomes an exit status and one line, and a defect stays a traceback."""

import subprocess
import sys

import jax
import pytest

from jax_probe_mtp.errors import Parser, exit_status


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("a 3\nis no b; give 2."), 2, "error: a 3 is no b; give 2."),
        (OSError("gone"), 2, "error: gone"),
        (FileNotFoundError(2, "No such file", "a.jsonl"), 2, "error: a.jsonl is not there; look at its name"),
        (
            FileNotFoundError(2, "No such file", "no/b/c.json"),
            2,
            "error: no/b/c.json is not there, nor is its folder; look at its name",
        ),
        (FileNotFoundError("no store"), 2, "error: no store"),
        (MemoryError("9 TiB"), 2, "error: out of memory (9 TiB); try a smaller --batch-size"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room"),
            2,
            "error: the device gave up (RESOURCE_EXHAUSTED: no room); try a smaller --batch-size",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: lost"),
            2,
            "error: the device gave up (INTERNAL: lost); run it again, and report it if that does not help",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_an_error_is_one_line(capsys, error, status, line):
    assert exit_status(raising(error)) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_a_defect_stays_a_traceback():
    assert exit_status(lambda: 5) == 5
    with pytest.raises(KeyError):
        exit_status(raising(KeyError("x")))


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_no_device_is_said(platform):
    code = "import sys, jax; from jax_probe_mtp.errors import exit_status as e; sys.exit(e(lambda: jax.numpy.ones(1).size))"
    env = {"JAX_PLATFORMS": platform, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert last.startswith("error: JAX finds no device (")
    assert last.endswith(f"JAX_PLATFORMS is {platform!r}: unset it, or install for it.")


def test_a_reader_that_has_gone_is_no_error():
    code = "from jax_probe_mtp.errors import exit_status; import sys; sys.exit(exit_status(lambda: print('x' * 200000) or 0))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait() == 141


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--modle", "x"], "there is no flag --modle; did you mean --model?"),  # not that --model is missing
        (["--model", "x", "--batch-sise=4"], "there is no flag --batch-sise; did you mean --batch-size?"),
        (["--model", "x", "--zzz"], "there is no flag --zzz"),
        (["command", "--quiett"], "there is no flag --quiett; did you mean --quiet?"),
    ],
)
def test_a_flag_that_there_is_not_is_named_with_the_one_that_was_meant(capsys, args, says):
    parser = Parser(prog="p")
    if args[0] == "command":
        command = parser.add_subparsers(parser_class=Parser).add_parser("command")
        command.add_argument("--quiet", action="store_true")
    else:
        parser.add_argument("--model", required=True)
        parser.add_argument("--batch-size")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(args)
    assert end.value.code == 2
    prog = "p command" if args[0] == "command" else "p"
    assert capsys.readouterr().err == f"error: {says} (see {prog} --help)\n"


def test_flags_may_be_shortened_and_values_look_like_anything():
    parser = Parser(prog="p")
    parser.add_argument("--model", required=True)
    parser.add_argument("--top", type=int)
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args(["--mod=--zzz", "--top", "-1", "--", "--yyy"])
    assert (args.model, args.top, args.rest) == ("--zzz", -1, ["--yyy"])
    assert parser.parse_args(["--model", "--- a title\nand more"]).model == "--- a title\nand more"


def test_where_flags_may_not_be_shortened_a_short_one_is_named(capsys):
    parser = Parser(prog="p", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--mod", "x"])
    assert capsys.readouterr().err == "error: there is no flag --mod; did you mean --model? (see p --help)\n"
