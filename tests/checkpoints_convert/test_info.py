"""A checkpoint is described without its weights."""

import jax
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import D, F, G, H, K, L, V, h, hf_config, hf_tensors, quiet

from checkpoints_convert import convert_hf, load_checkpoint, read_info
from checkpoints_convert.cli import main


def test_info_counts_without_loading(tmp_path, hf_folder, capsys):
    qkv, attention_out, mlp = D * K * (G + 2) * h + K * (G + 2) * h, H * h * D, 3 * D * F
    num_params = 2 * V * D + D + L * (qkv + attention_out + mlp + 2 * D)
    convert_hf(hf_folder, tmp_path / "ours", dtype="bfloat16", note=quiet)
    gguf_file = write_gguf(tmp_path / "m.gguf", "qwen2", hf_tensors(hf_config("qwen2")))
    for path, kind, dtype, item in (
        (hf_folder, "hf", "float32", 4),
        (gguf_file, "gguf", "float32", 4),
        (tmp_path / "ours", "converted", "bfloat16", 2),
    ):
        info = read_info(path)
        assert (info.kind, info.dtype, info.num_params, info.num_bytes) == (kind, dtype, num_params, num_params * item)
        assert info.kv_bytes_per_token == 2 * K * h * L * item
        assert main(["info", str(path)]) == 0
        shown = capsys.readouterr().out
        tokens = 10**9 // (2 * K * h * L * item)
        for part in (f"qwen2: {L} layers", f"{num_params:,}", dtype, "640 tokens", f"{tokens:,} tokens per GB"):
            assert part in shown
    leaves = jax.tree.leaves(load_checkpoint(tmp_path / "ours").params)
    assert sum(leaf.size for leaf in leaves) == num_params
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
