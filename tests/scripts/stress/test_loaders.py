"""scripts/stress/loaders.py: a few hundred damaged checkpoints, what the harness sees, and each defect that was found."""

import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file
from support.gguf_files import header, tensor, text, write_gguf
from support.gguf_tokenizers import build, fields_of, spm_fields, trained
from support.hf_folders import D, L, hf_config, hf_tensors, sharded, write_hf

from checkpoints_convert import CheckpointError, convert_hf, load_checkpoint, read_info
from checkpoints_convert.errors import LONGEST
from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.model import open_gguf
from checkpoints_convert.huggingface.model import open_hf
from checkpoints_convert.mapping.fields import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_json

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts" / "stress"
SECONDS = 120  # more is an error
PLANTED_CASES, PLANTED_SEED = 10, 234  # each plant is there, those that end the process once

# Run in place of the script: a reader of GGUF files that misbehaves as the first byte of the file says.
PLANTED = r"""
import ctypes, os, signal, sys, time
import loaders, worker
from checkpoints_convert import load
from checkpoints_convert.errors import CheckpointError

def hang(path):
    while True:
        time.sleep(0.01)

def hang_deaf(path):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as code in C, which the alarm does not reach
    hang(path)

def two_lines(path):
    error = CheckpointError("a")
    error.args = ("a\nb",)
    raise error

def canary(path):
    return os.path.join(os.path.dirname(path), "..", "canary.json")

plants = [
    lambda path: {}["key"],
    hang,
    hang_deaf,
    lambda path: open(canary(path)).read(),
    lambda path: ctypes.CDLL(None).open(canary(path).encode(), 0),
    lambda path: bytearray(b"x") * (64 << 20),
    lambda path: os.abort(),
    two_lines,
]
open_gguf = load.open_gguf

def planted(path):
    first = path.read_bytes()[0]
    if first < len(plants):
        plants[first](path)
        raise CheckpointError("refused")
    return open_gguf(path)

load.open_gguf = planted
worker.KINDS = {"gguf": 1}
worker.SECONDS, worker.SECONDS_TO_DIE = 0.5, 1.0
worker.damage = lambda draw, kind, seed: ("planted", {"m.gguf": bytes([draw.randrange(len(plants) + 1)])})
sys.exit(loaders.main(sys.argv[1:]))
"""


def run_fuzz(*args, code=None):
    start = ["-c", code] if code else [str(SCRIPTS / "loaders.py")]
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *start, *map(str, args)]
    return subprocess.run(command, env=os.environ | own, capture_output=True, timeout=SECONDS, text=True, check=False)


def test_damaged_checkpoints_load_or_are_refused(tmp_path):
    done = run_fuzz("--cases", 300, "--seed", 7, "--output", tmp_path / "record.json")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["all"]["cases"] == 300
    assert record["all"]["loaded"] > 20
    assert record["all"]["refused"] > 150
    assert record["defects"] == []
    assert sum(row["cases"] for row in record["table"]) == 300
    assert {row["file"] for row in record["table"]} >= {"safetensors", "shards", "config", "gguf", "converted"}
    assert 0 < record["slowest"]["seconds"] <= record["limits"]["seconds"]
    assert "defects" in done.stdout.splitlines()[0]


def test_the_harness_sees_what_a_reader_does_wrong(tmp_path):
    done = run_fuzz("--cases", PLANTED_CASES, "--seed", PLANTED_SEED, "--output", tmp_path / "r.json", code=PLANTED)
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    seen = {(case["result"], case["message"].partition(" ")[0]) for case in record["defects"]}
    assert seen == {
        ("other error", "KeyError:"),
        ("late", "stopped"),
        ("killed", "did"),
        ("outside", "open"),  # as Python's audit events tell
        ("outside", "inotify"),  # opened by C, which raises none
        ("memory", "refused"),
        ("crash", "the"),
        ("not one line", "a\nb"),
    }
    assert record["all"]["refused"] > 0
    case = record["defects"][0]
    assert f"--seed {PLANTED_SEED} --first {case['case']} --cases 1 (gguf, planted)" in done.stdout


# What it found.


@pytest.mark.parametrize("character", ["\n", "\r", "\u2028", "\x1b", "\0", "\ud800", "\x85"])
def test_a_message_is_one_line_whatever_a_file_puts_into_it(tmp_path, character):
    config = hf_config("llama", hidden_act=f"a{character}b")
    with pytest.raises(CheckpointError, match=r"hidden_act = a\\.*b is not supported") as error:
        open_hf(write_hf(tmp_path / "hf", config, {}))
    assert str(error.value).isprintable()
    key = f"a{character}b".encode("utf-8", "replace")
    (tmp_path / "m.gguf").write_bytes(header(text(key) + struct.pack("<I", 77), 1))
    with pytest.raises(CheckpointError, match="unknown type 77") as error:
        read_header(tmp_path / "m.gguf")
    assert str(error.value).isprintable()


def test_a_long_message_keeps_its_beginning_and_its_end(tmp_path):
    folder = write_hf(tmp_path / "hf", hf_config("llama", model_type="x" * 10**6), {})
    with pytest.raises(CheckpointError, match=r"config\.json: model_type 'xxx.* \[\.\.\.\] x.*not belong") as error:
        open_hf(folder)
    assert len(str(error.value)) < LONGEST


@pytest.mark.parametrize(
    ("shard", "message"),
    [("y" * 300 + ".safetensors", "cannot be a file .*too long"), ("\ud800.safetensors", "cannot be a file .*encode")],
)
def test_a_shard_s_name_may_be_no_file_s(tmp_path, shard, message):
    folder, index = sharded(tmp_path)
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        open_hf(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (json.dumps("x" * MAX_BYTES), f"more than {MAX_BYTES} bytes"),
        ("[" + "{}," * MAX_VALUES + "0]", f"more than {MAX_VALUES} values"),
        ("[" * MAX_DEPTH + "0" + "]" * MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
        ('{"a":' * MAX_DEPTH + "0" + "}" * MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
    ],
)
def test_json_that_would_take_much_memory_or_stack_is_refused(tmp_path, value, message):
    path = tmp_path / "config.json"
    path.write_text('{"a": ' + value + "}")
    with pytest.raises(CheckpointError, match=message):
        read_json(path)
    path.write_text('{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}")
    assert list(read_json(path)) == ["a"]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        before = signal.signal(signal.SIGALRM, lambda *args: pytest.fail("it waits"))
        signal.alarm(5)
        try:
            with pytest.raises(CheckpointError, match=f"{name} is not a file"):
                load_checkpoint(folder)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def test_a_length_beyond_all_floats_is_named(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = hf_config("llama", rope_scaling=scaling | {"original_max_position_embeddings": 10**400})
    with pytest.raises(
        CheckpointError, match="original_max_position_embeddings' must be a whole number within 64 bits"
    ):
        open_hf(write_hf(tmp_path / "hf", config, {}))


def test_layers_that_the_tensors_cannot_fill_are_not_planned(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config | {"num_hidden_layers": 40}, hf_tensors(config))
    with pytest.raises(
        CheckpointError, match="48 tensors, too few for the 40 layers"
    ):  # as many as it has, but 9 a layer
        load_checkpoint(folder)


@pytest.fixture
def converted(tmp_path):
    config = hf_config("qwen2")
    convert_hf(write_hf(tmp_path / "hf", config, hf_tensors(config)), tmp_path / "ours", note=lambda text: None)
    return tmp_path / "ours"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 10**12}, "1000000000000 layers are above 1024"),
        ({"vocab_size": 10**400}, "'vocab_size' must be a whole number within 64 bits"),
        ({"rope_theta": float("inf")}, "'rope_theta' must be finite"),
        ({"norm_eps": 10**400}, "'norm_eps' must be finite"),
        ({"rope_divisors": [10**400] * 4}, "too large"),
        ({"is_sharded": True}, "is_sharded must be false"),
    ],
)
def test_a_converted_folder_s_configuration_is_checked(converted, change, message):
    path = converted / "jax_probe_mtp.json"
    values = json.loads(path.read_text())
    values["config"] |= change
    path.write_text(json.dumps(values))
    for read in (load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match=message):
            read(converted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": [2**32 + 1, D]}, "one plain chunk"),  # memory for it would be asked for, and the process end
        ({"dtype": "|V4294967296"}, "one plain chunk"),
        ({"compressor": {"id": "zlib", "level": 1}}, "one plain chunk"),
        ({"shape": [2**40, D]}, "its shape is"),
        ({"order": "x" * MAX_BYTES}, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_sizes_in_an_array_s_notes_are_not_believed(converted, change, message):
    path = converted / "params" / "embed" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"\['embed'\] cannot be restored \(.*{message}"):
        load_checkpoint(converted)


def test_arrays_of_another_format_are_not_followed(converted):
    path = converted / "params" / "_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_zarr3": True}))
    with pytest.raises(CheckpointError, match="zarr3"):
        load_checkpoint(converted)


def test_a_header_of_many_tensors_is_refused_before_it_is_read(tmp_path, monkeypatch):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20000)}
    raw = json.dumps(many).encode()
    assert len(raw) > MAX_BYTES
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    monkeypatch.setattr(safetensors, "safe_open", None)
    with pytest.raises(CheckpointError, match=f"a header of {len(raw)} bytes; more than {MAX_BYTES}"):
        open_hf(folder)


def test_a_tensor_that_the_index_does_not_know_ends_the_reading(tmp_path):
    folder, _ = sharded(tmp_path)
    save_file({f"t{i}": np.zeros(1, np.float32) for i in range(1000)}, folder / "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"00001-of-00003\.safetensors: tensor 't\d+' is not in"):
        open_hf(folder)


def test_a_file_of_many_tensors_is_opened_a_few_times(tmp_path, monkeypatch):
    opened = []

    def counted(path, *args, really=safetensors.safe_open):
        opened.append(path)
        return really(path, *args)

    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    monkeypatch.setattr(safetensors, "safe_open", counted)
    monkeypatch.setattr("checkpoints_convert.huggingface.safetensors.MAX_MAPPED", 100_000)
    load_checkpoint(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size // 200_000 <= len(opened) - 1 <= 1 + size // 100_000  # each time a header of 9 L tensors is read
    assert len(opened) < L


def peak_of(read, path):
    """Bytes that Python and numpy allocate at most; what is refused is as good as what is read."""
    tracemalloc.start()
    try:
        read(path)
    except CheckpointError as error:
        refused = str(error)
    else:
        refused = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, refused


def array(kind, count, items):
    return text(b"a") + struct.pack("<IIQ", 9, kind, count) + items


NUM = 1 << 20


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (header(array(0, NUM, bytes(NUM)), 1), None),
        (header(array(8, NUM // 8, text(b"ab") * (NUM // 8)), 1), None),
        (
            header(b"".join(text(b"%x" % i) + struct.pack("<IB", 0, 1) for i in range(NUM // 8)), NUM // 8),
            "131072 fields",
        ),
        (
            header(tensors=b"".join(tensor(b"%x" % i, [1], 0, 4 * i) for i in range(NUM // 8)), num_tensors=NUM // 8),
            "131072 tensors",
        ),
        (header(text(b"a" * 2 * NUM) + struct.pack("<IB", 0, 1), 1), "its texts have more than 1048576 bytes"),
        (header(text(b"a") + struct.pack("<I", 8) + text("🙂".encode() * NUM), 1), "its texts have more than"),
    ],
    ids=["numbers", "texts", "fields", "tensors", "a long key", "a long text"],
)
def test_a_header_takes_little_more_memory_than_it_has_bytes(tmp_path, raw, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw + bytes(NUM))
    peak, refused = peak_of(read_header, path)
    assert (refused is None) == (message is None)
    assert (message or "") in (refused or "")
    assert peak < 5 << 20


def test_an_array_is_read_when_it_is_gone_through(tmp_path):
    path = tmp_path / "m.gguf"
    numbers = text(b"n") + struct.pack("<IIQ3h", 9, 3, 3, 1, -2, 3)
    path.write_bytes(header(array(8, 2, text("é".encode()) + text(b"")) + numbers, 2))
    fields, _ = read_header(path)
    assert {key: list(value) for key, value in fields.items()} == {"a": ["é", ""], "n": [1, -2, 3]}
    path.write_bytes(header(array(8, 1, text(b"\xff")), 1))
    fields, _ = read_header(path)
    assert len(fields["a"]) == 1
    with pytest.raises(CheckpointError, match="a at byte 57 is not UTF-8 text"):
        list(fields["a"])


def test_rope_divisors_of_no_head_are_not_read(tmp_path):
    many = {"rope_freqs.weight": np.ones(1 << 20, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), extra=many)
    peak, refused = peak_of(open_gguf, path)
    assert "must be a vector of F32, h/2 long, got F32 of [1048576]" in refused
    assert peak < 4 << 20


def test_a_token_of_many_letters_does_not_keep_the_reader_busy():
    fields = spm_fields()
    fields["tokenizer.ggml.tokens"][-1] = "ab" * 100_000  # 2 * 10^10 letters would be looked at
    with pytest.raises(CheckpointError, match="token 267 has 200000 characters; 256 are supported"):
        build(fields)


def test_more_merges_than_tokens_allow_are_refused():
    fields = fields_of(trained("gpt-2"), "gpt-2")
    most = sum(map(len, fields["tokenizer.ggml.tokens"]))
    fields["tokenizer.ggml.merges"] = [fields["tokenizer.ggml.merges"][0]] * (most + 1)
    with pytest.raises(CheckpointError, match=f"{most + 1} tokenizer.ggml.merges; its tokens allow for {most}"):
        build(fields)


def test_a_tokenizer_leads_to_no_file_elsewhere(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.4.0.json")
    (folder / "tokenizer.json").write_text("{}")
    settings = {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="names other files under 'fast_tokenizer_files'; remove that entry"):
        load_checkpoint(folder)


def test_a_panic_of_a_tokenizer_is_named_and_an_interrupt_is_none(tmp_path, monkeypatch):
    class PanicException(BaseException):
        """As pyo3's, which is no Exception either."""

    def fail(error):
        def raise_it(*args, **kwargs):
            raise error

        return raise_it

    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    fields = fields_of(trained("gpt-2"), "gpt-2")
    reads = {
        "transformers.PreTrainedTokenizerFast.from_pretrained": lambda: load_checkpoint(folder),
        "checkpoints_convert.gguf.tokenizer.byte_level_tokenizer": lambda: build(fields),
    }
    for name, read in reads.items():
        monkeypatch.setattr(name, fail(PanicException("index out of bounds")))
        with pytest.raises(CheckpointError, match=r"its tokenizer cannot be .*index out of bounds"):
            read()
        monkeypatch.setattr(name, fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            read()
