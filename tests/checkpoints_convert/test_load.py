"""Opening and loading a model of any kind."""

import shutil
import subprocess
import sys

import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.gguf_tokenizers import build, fields_of, trained
from support.checkpoints.hf_folders import L, hf_config, hf_tensors, quiet, write_hf

from checkpoints_convert import CheckpointError, convert_gguf, convert_hf, load_checkpoint, open_checkpoint
from checkpoints_convert.gguf.reader import GGUFSource
from checkpoints_convert.huggingface.safetensors import SafetensorsSource


def test_neither_kind_takes_the_other(tmp_path, hf_folder):
    with pytest.raises(CheckpointError, match=r"cannot be read as GGUF|not a GGUF file"):
        convert_gguf(hf_folder / "model.safetensors", tmp_path / "x", note=quiet)
    gguf_file = write_gguf(tmp_path / "m.gguf", "qwen2", hf_tensors(hf_config("qwen2")))
    with pytest.raises(CheckpointError, match="is not a folder"):
        convert_hf(gguf_file, tmp_path / "x", note=quiet)
    with pytest.raises(CheckpointError, match="dtype must be one of float32, bfloat16, got 'int8'"):
        load_checkpoint(gguf_file, dtype="int8")


def test_loading_needs_no_torch(hf_folder):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # importing it now fails
        "import checkpoints_convert\n"
        "print(checkpoints_convert.load_checkpoint(sys.argv[1]).tokenizer('the')['input_ids'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(hf_folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")


def test_opening_reads_no_weights(tmp_path, monkeypatch):
    def read(self, *args):
        raise CheckpointError(f"{args} was read.")

    config = hf_config("llama", tie_word_embeddings=True)
    tensors = hf_tensors(config)
    folder = write_hf(
        tmp_path / "hf", config, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    )
    file = write_gguf(tmp_path / "m.gguf", "llama", tensors)
    convert_hf(folder, tmp_path / "ours", dtype="bfloat16", note=lambda text: None)
    monkeypatch.setattr(SafetensorsSource, "read", read)
    monkeypatch.setattr(GGUFSource, "read", read)
    for array in (tmp_path / "ours" / "params").iterdir():
        shutil.rmtree(array) if array.is_dir() else array.unlink()
    for path, dtype in ((folder, "float32"), (file, "float32"), (tmp_path / "ours", "bfloat16")):
        model = open_checkpoint(path)
        assert (model.config.num_layers, model.dtype, model.name) == (L, dtype, str(path))
        assert len(model.tokenizer("the fox")["input_ids"]) > 0
        assert open_checkpoint(path, dtype="bfloat16").dtype == "bfloat16"
        with pytest.raises(CheckpointError, match=r"was read|holds 0 arrays"):
            model.load()


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
