"""Lists shapes of well-known models, as in their config.json, for timing on random weights without a download."""

from jax_probe_mtp.model.config import ModelConfig

_LLAMA3 = {"family": "llama", "vocab_size": 128256, "context_length": 8192, "norm_eps": 1e-5, "rope_theta": 500000.0}
_QWEN3 = {
    "family": "qwen3",
    "vocab_size": 151936,
    "context_length": 40960,
    "norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "has_qk_norm": True,
}
_QWEN25 = {
    "family": "qwen2",
    "vocab_size": 151936,
    "context_length": 32768,
    "norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "has_qkv_bias": True,
}


def _shape(
    family: dict, *, width: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int, is_tied: bool
) -> ModelConfig:
    return ModelConfig(
        **family,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp,
        is_tied=is_tied,
    )


SHAPES = {
    "llama-3-8b": _shape(_LLAMA3, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14336, is_tied=False),
    "qwen3-8b": _shape(_QWEN3, width=4096, layers=36, heads=32, kv_heads=8, head_dim=128, mlp=12288, is_tied=False),
    "llama-3.2-3b": _shape(_LLAMA3, width=3072, layers=28, heads=24, kv_heads=8, head_dim=128, mlp=8192, is_tied=True),
    "qwen3-0.6b": _shape(_QWEN3, width=1024, layers=28, heads=16, kv_heads=8, head_dim=128, mlp=3072, is_tied=True),
    "qwen2.5-0.5b": _shape(_QWEN25, width=896, layers=24, heads=14, kv_heads=2, head_dim=64, mlp=4864, is_tied=True),
    "qwen3-32b": _shape(_QWEN3, width=5120, layers=64, heads=64, kv_heads=8, head_dim=128, mlp=25600, is_tied=False),
    "llama-3-70b": _shape(_LLAMA3, width=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp=28672, is_tied=False),
    "smollm2-135m": _shape(
        {**_LLAMA3, "vocab_size": 49152, "rope_theta": 100000.0},
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        mlp=1536,
        is_tied=True,
    ),
    "tiny": _shape(  # for tests and a CPU
        {**_LLAMA3, "vocab_size": 512},
        width=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        mlp=128,
        is_tied=False,
    ),
}
