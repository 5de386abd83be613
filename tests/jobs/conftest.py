"""A tiny model that answers files of prompts, for the tests of jobs."""

import logging

import pytest
from checkpoints import make_checkpoint, write_folder
from support.files.job_runs import FAILING, FLAGS, IDS, RECORDS, ids_of, read, write


@pytest.fixture(scope="session")
def model(tiny, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", make_checkpoint(tiny, template=FAILING))


@pytest.fixture
def log_level_stays():
    logger = logging.getLogger("jax_probe_mtp")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def generate(run, model, monkeypatch, log_level_stays, programs_are_compiled_once):
    """Runs `generate` on the tiny model. Its log lines go to stderr, as where pytest has no handlers of its own."""

    def generate(*args, of=model):
        with monkeypatch.context() as patch:
            patch.setattr(logging.root, "handlers", [])
            return run("generate", "--model", of, *FLAGS, *args)

    return generate


@pytest.fixture(scope="module")
def whole_run(model, tmp_path_factory, programs_are_compiled_once):
    """The lines of the run over `RECORDS` that nothing cut off, in the order in which they were written; and what made them."""
    from jax_probe_mtp.commands.main import main

    folder = tmp_path_factory.mktemp("whole")
    files = ["--input", write(folder, RECORDS), "--output", folder / "answers.jsonl"]
    assert main([str(arg) for arg in ["generate", "--model", model, *FLAGS, *files]]) == 0
    lines = read(folder / "answers.jsonl")
    assert sorted(map(str, ids_of(lines))) == sorted(map(str, IDS))
    assert ids_of(lines) != IDS, "choose records that do not end in the order of the file"
    return lines, (folder / "answers.jsonl.run.json").read_bytes()


@pytest.fixture(scope="module")
def whole(whole_run):
    return whole_run[0]


@pytest.fixture
def leave(whole_run, tmp_path):
    """Leaves the folder as a run over `RECORDS` that was cut off does."""

    def leave(lines, torn=""):
        (tmp_path / "answers.jsonl").write_text("".join(lines) + torn, encoding="utf-8")
        (tmp_path / "answers.jsonl.run.json").write_bytes(whole_run[1])

    return leave
