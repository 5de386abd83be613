"""The flags that several commands share."""

import pytest

from jax_probe_mtp.commands.options import positives
from jax_probe_mtp.errors import Parser


def test_numbers_of_at_least_one(capsys):
    parser = Parser(prog="p")
    parser.add_argument("--sizes", type=positives)
    assert parser.parse_args(["--sizes", "1,8"]).sizes == [1, 8]
    for text, says in (("0", "must be at least 1, got 0"), ("3,x", "invalid positives value: '3,x'")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--sizes", text])
        assert capsys.readouterr().err == f"error: argument --sizes: {says} (see p --help)\n"
