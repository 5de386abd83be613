"""scripts/peers/bench_llama_cpp.py: the GGUF that llama.cpp is given holds the numbers that we multiply."""

import sys
import types

import bench_llama_cpp
import jax
import numpy as np
from gguf import GGMLQuantizationType as Kind
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import hf_config, hf_tensors

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.errors import exit_status


def test_what_is_shorter_is_written_in_float32(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    kinds = {name: Kind.F16 for name in tensors if name.endswith("proj.weight")}
    source = write_gguf(tmp_path / "q.gguf", "llama", tensors, kinds=kinds)
    bench_llama_cpp.write_float32(source, tmp_path / "f.gguf")
    quantized, whole = (load_checkpoint(tmp_path / name, dtype="float32") for name in ("q.gguf", "f.gguf"))
    assert whole.config == quantized.config
    assert whole.eos_token_ids == quantized.eos_token_ids
    jax.tree.map(np.testing.assert_array_equal, whole.params, quantized.params)
    assert (tmp_path / "f.gguf").stat().st_size > source.stat().st_size


def test_what_is_wrong_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "category": "qa", "turns": ["why?"]}\n')
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for model, says in [("folder", "--model must be a .gguf file"), ("m.gguf", "pip install llama-cpp-python")]:
        args = ["--model", str(tmp_path / model), "--questions", str(questions)]
        assert exit_status(lambda args=args: bench_llama_cpp.main(args)) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), says in err) == ("", 1, True)


def test_a_batch_has_questions_enough(tmp_path, monkeypatch, capsys):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "category": "qa", "turns": ["why?"]}\n')
    model = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")))
    monkeypatch.setitem(sys.modules, "llama_cpp", types.ModuleType("llama_cpp"))
    args = ["--model", str(model), "--questions", str(questions), "--no-chat-template", "--batch", "1", "8"]
    assert exit_status(lambda: bench_llama_cpp.main(args)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--batch 8 needs as many questions of at most 400 tokens, there are 1; lower it" in err
