"""Faults in `checkpoints_convert`."""

from faults.fault import Fault

CHECKPOINTS = (
    Fault(
        name="gguf-blocks-with-other-scales",
        breaks="columns of a quantized tensor are read from where no block begins, so numbers stand for scales",
        file="checkpoints_convert/gguf/reader.py",
        old="raw[:, first * block_bytes : last * block_bytes]",
        new="raw[:, first * block : first * block + (last - first) * block_bytes]",
        tests=("tests/checkpoints_convert/gguf/test_reader.py",),
    ),
    Fault(
        name="gguf-pairs-not-put-apart",
        breaks="queries and keys of a Llama's GGUF file stay in its order of rope's pairs",
        file="checkpoints_convert/mapping/transforms.py",
        old="return halves.swapaxes(-3, -2)",
        new="return halves",
        tests=("tests/checkpoints_convert/gguf/test_model.py",),
    ),
    Fault(
        name="eight-bit-head-of-the-table",
        breaks="the eight-bit head is rounded from the embedding table where it is not tied, too",
        file="checkpoints_convert/params/fill.py",
        old="leaf = planned[path] if path in planned else planned[EMBED]",
        new="leaf = planned[EMBED] if _is_head(path) else planned[path]",
        tests=("tests/checkpoints_convert/params/test_rounding.py",),
    ),
    Fault(
        name="sliding-window-ignored",
        breaks="a model whose texts reach its sliding window is read as one without",
        file="checkpoints_convert/mapping/families.py",
        old="if window is not None and window < context_length:",
        new="if window is not None and window > context_length:",
        tests=("tests/checkpoints_convert/huggingface/test_config.py",),
    ),
)
