"""A layer of a decode block out of GPU kernels, nine where XLA makes fourteen; it computes what `model.decoder_layer` does.

norm of x -> product -> split_qkv -> attention, merge -> product -> add_norm
          -> gated product -> product -> add_norm -> x after the layer, and its norm
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels import int8_product
from jax_probe_mtp.kernels.add_norm import add_norm
from jax_probe_mtp.kernels.product import gated_product, is_supported, product_parts
from jax_probe_mtp.kernels.split_qkv import split_qkv
from jax_probe_mtp.model import layers
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Int8, Params
from jax_probe_mtp.model.transformer import Attend, Rope, Stream, sum_parts


def decoder_layer(
    layer: Params,
    next_norm_D: jax.Array,
    rope: Rope,
    stream: Stream,
    *,
    cfg: ModelConfig,
    start_B: jax.Array,
    attend: Attend,
    interpret: bool = False,
) -> Stream:
    """Runs one layer of a block.

    Args:
      layer: its parameters.
      next_norm_D: weight of the norm that follows it.
      rope: `layers.rope_table`.
      stream: the residual stream before the layer, its norm, and the layer's keys and values.
      cfg: the model; static.
      start_B: int32 [B], slot of the block's first row.
      attend: one of kernels/attention.py's, of queries [B, K, G, T, h], keys and values [B, K, S, h].
      interpret: runs the kernels as JAX operations on any device: slow, for tests.

    Returns:
      The same after the layer, the block's rows written.
    """
    x_BTD, normed_BTD, k_BKSh, v_BKSh = stream
    B, T, D = x_BTD.shape
    x_MD, normed_MD = x_BTD.reshape(B * T, D), normed_BTD.reshape(B * T, D)
    kernel: dict[str, Any] = {"interpret": interpret}

    def by_xla(x_MI: jax.Array, weight: layers.Weight) -> jax.Array:
        if isinstance(weight, Int8):
            return layers.linear(x_MI, weight)
        return layers.product("mi,io->mo", x_MI, weight)

    def product(x_MI: jax.Array, weight: layers.Weight) -> jax.Array:
        """Parts [P, M, O] of the product."""
        if isinstance(weight, Int8):
            if int8_product.is_supported(B * T, x_MI.dtype, weight.value):
                return int8_product.product_parts(x_MI, *weight, **kernel)
        elif is_supported(B * T, x_MI.dtype, weight):
            return product_parts(x_MI, weight, **kernel)
        return by_xla(x_MI, weight)[None]

    def gated(x_MD: jax.Array, gate: Any, up: Any) -> jax.Array:
        """silu(gate(x)) * up(x), [M, F]."""
        if isinstance(gate, Int8):
            if int8_product.is_supported(B * T, x_MD.dtype, gate.value, up.value):
                return int8_product.gated_product(x_MD, gate, up, **kernel)
        elif is_supported(B * T, x_MD.dtype, gate, up):
            return gated_product(x_MD, gate, up, **kernel)
        gate_MF, up_MF = (by_xla(x_MD, weight) for weight in (gate, up))
        return jax.nn.silu(gate_MF) * up_MF

    def add(x_MD: jax.Array, parts_PMD: jax.Array, norm_D: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Adds the product to the stream, and takes its norm."""
        if cfg.is_sharded:
            parts_PMD = sum_parts(cfg, jnp.sum(parts_PMD, axis=0, keepdims=True))
        return add_norm(x_MD, parts_PMD, norm_D, eps=cfg.norm_eps, **kernel)

    qkv_PMI = product(normed_MD, layer["qkv"])
    K, G, h = cfg.num_kv_heads, cfg.queries_per_kv, cfg.head_dim
    q_BKGTh, k_BKSh, v_BKSh = split_qkv(
        qkv_PMI.reshape(-1, B, T, K, G + 2, h),
        layer["qkv_bias"].reshape(K, G + 2, h) if cfg.has_qkv_bias else None,
        (layer["q_norm"], layer["k_norm"]) if cfg.has_qk_norm else None,
        rope,
        k_BKSh,
        v_BKSh,
        start_B,
        eps=cfg.norm_eps,
        **kernel,
    )
    mixed_BTKGh = attend(q_BKGTh, k_BKSh, v_BKSh)
    x_MD, normed_MD = add(x_MD, product(mixed_BTKGh.reshape(B * T, -1), layer["out"]), layer["mlp_norm"])
    inner_MF = gated(normed_MD, layer["gate"], layer["up"])
    x_MD, normed_MD = add(x_MD, product(inner_MF, layer["down"]), next_norm_D)
    return x_MD.reshape(B, T, D), normed_MD.reshape(B, T, D), k_BKSh, v_BKSh
