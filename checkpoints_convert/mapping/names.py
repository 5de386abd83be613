"""Says which tensor of a file goes where: one table per kind of file, one row per weight."""

import dataclasses

from checkpoints_convert.mapping.families import BY_GGUF
from jax_probe_mtp.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight.

    Attributes:
      source: its name in the file; `{}` stands for the layer's number.
      target: our leaf, a key of `abstract_params` or of one of its layers (where `source` has a `{}`).
      layout: how it lies in the leaf, a key of `transforms.LAYOUTS`.
    """

    source: str
    target: str
    layout: str


HF_EMBED, HF_HEAD = "model.embed_tokens.weight", "lm_head.weight"

_HF = (
    Row(HF_EMBED, "embed", "same"),
    Row("model.layers.{}.input_layernorm.weight", "attn_norm", "same"),
    Row("model.layers.{}.self_attn.q_proj.weight", "qkv", "q"),
    Row("model.layers.{}.self_attn.k_proj.weight", "qkv", "k"),
    Row("model.layers.{}.self_attn.v_proj.weight", "qkv", "v"),
    Row("model.layers.{}.self_attn.o_proj.weight", "out", "out"),
    Row("model.layers.{}.post_attention_layernorm.weight", "mlp_norm", "same"),
    Row("model.layers.{}.mlp.gate_proj.weight", "gate", "transposed"),
    Row("model.layers.{}.mlp.up_proj.weight", "up", "transposed"),
    Row("model.layers.{}.mlp.down_proj.weight", "down", "transposed"),
    Row("model.norm.weight", "final_norm", "same"),
    Row(HF_HEAD, "head", "same"),
)

_HF_BIASES = (
    Row("model.layers.{}.self_attn.q_proj.bias", "qkv_bias", "q_bias"),
    Row("model.layers.{}.self_attn.k_proj.bias", "qkv_bias", "k_bias"),
    Row("model.layers.{}.self_attn.v_proj.bias", "qkv_bias", "v_bias"),
)

_HF_QK_NORMS = (
    Row("model.layers.{}.self_attn.q_norm.weight", "q_norm", "same"),
    Row("model.layers.{}.self_attn.k_norm.weight", "k_norm", "same"),
)

GGUF_HEAD, GGUF_ROPE_DIVISORS = "output.weight", "rope_freqs.weight"


def _gguf(q_layout: str, k_layout: str) -> tuple[Row, ...]:
    return (
        Row("token_embd.weight", "embed", "same"),
        Row("blk.{}.attn_norm.weight", "attn_norm", "same"),
        Row("blk.{}.attn_q.weight", "qkv", q_layout),
        Row("blk.{}.attn_k.weight", "qkv", k_layout),
        Row("blk.{}.attn_v.weight", "qkv", "v"),
        Row("blk.{}.attn_output.weight", "out", "out"),
        Row("blk.{}.ffn_norm.weight", "mlp_norm", "same"),
        Row("blk.{}.ffn_gate.weight", "gate", "transposed"),
        Row("blk.{}.ffn_up.weight", "up", "transposed"),
        Row("blk.{}.ffn_down.weight", "down", "transposed"),
        Row("output_norm.weight", "final_norm", "same"),
        Row(GGUF_HEAD, "head", "same"),
    )


_GGUF_BIASES = (
    Row("blk.{}.attn_q.bias", "qkv_bias", "q_bias"),
    Row("blk.{}.attn_k.bias", "qkv_bias", "k_bias"),
    Row("blk.{}.attn_v.bias", "qkv_bias", "v_bias"),
)

_GGUF_QK_NORMS = (
    Row("blk.{}.attn_q_norm.weight", "q_norm", "same"),
    Row("blk.{}.attn_k_norm.weight", "k_norm", "same"),
)


def hf_rows(cfg: ModelConfig) -> tuple[Row, ...]:
    """Gives the rows that a model needs of a Hugging Face folder."""
    return _needed(cfg, _HF, _HF_BIASES, _HF_QK_NORMS)


def gguf_rows(cfg: ModelConfig) -> tuple[Row, ...]:
    """Gives the rows that a model needs of a GGUF file."""
    layouts = ("q_rope_pairs", "k_rope_pairs") if BY_GGUF[cfg.family].has_rope_pairs else ("q", "k")
    return _needed(cfg, _gguf(*layouts), _GGUF_BIASES, _GGUF_QK_NORMS)


def _needed(
    cfg: ModelConfig, all_have: tuple[Row, ...], biases: tuple[Row, ...], norms: tuple[Row, ...]
) -> tuple[Row, ...]:
    rows = all_have + (biases if cfg.has_qkv_bias else ()) + (norms if cfg.has_qk_norm else ())
    return tuple(row for row in rows if not (cfg.is_tied and row.target == "head"))
