"""A layer of a decode block out of GPU kernels, nine where XLA makes fourteen; it computes what `model.decoder_layer` does.

norm of x -> product -> split_qkv -> attention, merge -> product -> add_norm
          -> gated product -> product -> add_norm -> x after the layer, and its norm
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels import int8_product
from jax_probe_mtp.kernels.add_norm import add_norm
from jax_probe_mtp.kernels.exchange import Mail, exchange_add_norm
from jax_probe_mtp.kernels.product import gated_product, is_supported, product_parts
from jax_probe_mtp.kernels.split_qkv import split_qkv
from jax_probe_mtp.model import layers
from jax_probe_mtp.model.cache import Stream
from jax_probe_mtp.model.config import TENSOR, ModelConfig
from jax_probe_mtp.model.params import Int8, Params
from jax_probe_mtp.model.transformer import Rope, sum_parts


def decoder_layer(
    layer: Params,
    next_norm_D: jax.Array,
    rope: Rope,
    stream: Stream,
    *,
    cfg: ModelConfig,
    start_B: jax.Array,
    attend: Callable[..., jax.Array],
    has_one_order: bool = False,
    interpret: bool = False,
) -> Stream:
    """Runs one layer of a block.

    Args:
      layer: its parameters.
      next_norm_D: weight of the norm that follows it.
      rope: `layers.rope_table`.
      stream: what the layer before gave, with this one's keys and values; where it has mail, sums go through that.
      cfg: the model; static.
      start_B: int32 [B], slot of the block's first row.
      attend: one of kernels/attention.py's, of queries [B, K, G, T, h], keys and values [B, K, S, h], and `num_out`.
      has_one_order: every product by its kernel, also of so many rows that XLA's would be faster, and the devices' parts
        summed in their order: a row's bits then do not depend on the rows beside it.
      interpret: runs the kernels as JAX operations on any device: slow, for tests.

    Returns:
      The same after the layer, the block's rows written.
    """
    x_BTD, normed_BTD, k_BKSh, v_BKSh, mail = stream
    B, T, D = x_BTD.shape
    M = B * T
    x_MD, normed_MD = x_BTD.reshape(M, D), normed_BTD.reshape(M, D)
    kernel: dict[str, Any] = {"interpret": interpret}
    # So many rows the kernels leave for the next product, which would first copy another number of them.
    N = M
    if (
        isinstance(layer["out"], Int8)
        and int8_product.is_supported(M, x_MD.dtype, layer["out"].value)
        and not interpret
    ):
        N = int8_product.fitting_rows(M)

    def by_xla(x_MI: jax.Array, weight: layers.Weight) -> jax.Array:
        if isinstance(weight, Int8):
            return layers.linear(x_MI, weight)
        return layers.product("mi,io->mo", x_MI, weight)

    def product(x_NI: jax.Array, weight: layers.Weight) -> jax.Array:
        """Parts [P, N, O] of the product of M or N rows."""
        if isinstance(weight, Int8):
            if has_one_order or int8_product.is_supported(M, x_NI.dtype, weight.value):
                return int8_product.product_parts(x_NI, weight, **kernel)
        elif has_one_order or is_supported(M, x_NI.dtype, weight):
            return product_parts(x_NI, weight, **kernel)
        return by_xla(x_NI, weight)[None]

    def gated(x_ND: jax.Array, gate: Any, up: Any) -> jax.Array:
        """silu(gate(x)) * up(x), [N, F]."""
        if isinstance(gate, Int8):
            if has_one_order or int8_product.is_supported(M, x_ND.dtype, gate.value, up.value):
                return int8_product.gated_product(x_ND, gate, up, **kernel)
        elif has_one_order or is_supported(M, x_ND.dtype, gate, up):
            return gated_product(x_ND, gate, up, **kernel)
        gate_NF, up_NF = (by_xla(x_ND, weight) for weight in (gate, up))
        return jax.nn.silu(gate_NF) * up_NF

    def add(
        x_MD: jax.Array, parts_PND: jax.Array, norm_D: jax.Array, mail: Mail | None, num_out: int
    ) -> tuple[jax.Array, jax.Array, Mail | None]:
        """Adds the product to the stream, and takes its norm."""
        if mail is not None:
            return exchange_add_norm(x_MD, parts_PND, norm_D, mail, eps=cfg.norm_eps, num_out=num_out)
        if cfg.is_sharded:
            if has_one_order:  # a sum over devices may have another order for another number of bytes
                part_ND = functools.reduce(jnp.add, parts_PND)
                parts_PND = jax.lax.all_gather(part_ND, TENSOR, axis=0)
            else:
                parts_PND = sum_parts(cfg, jnp.sum(parts_PND, axis=0, keepdims=True))
        return *add_norm(x_MD, parts_PND, norm_D, eps=cfg.norm_eps, num_out=num_out, **kernel), None

    qkv_PNI = product(normed_MD, layer["qkv"])
    if B > 1:
        qkv_PNI = qkv_PNI[:, :M]
    K, G, h = cfg.num_kv_heads, cfg.queries_per_kv, cfg.head_dim
    q_BKGTh, k_BKSh, v_BKSh = split_qkv(
        qkv_PNI.reshape(len(qkv_PNI), B, -1, K, G + 2, h),
        layer["qkv_bias"].reshape(K, G + 2, h) if cfg.has_qkv_bias else None,
        (layer["q_norm"], layer["k_norm"]) if cfg.has_qk_norm else None,
        rope,
        k_BKSh,
        v_BKSh,
        start_B,
        eps=cfg.norm_eps,
        has_one_order=has_one_order,
        **kernel,
    )
    mixed_NKGh = attend(q_BKGTh, k_BKSh, v_BKSh, num_out=N)
    x_MD, normed_ND, mail = add(x_MD, product(mixed_NKGh.reshape(N, -1), layer["out"]), layer["mlp_norm"], mail, N)
    inner_NF = gated(normed_ND, layer["gate"], layer["up"])
    x_MD, normed_MD, mail = add(x_MD, product(inner_NF, layer["down"]), next_norm_D, mail, M)
    return Stream(x_MD.reshape(B, T, D), normed_MD.reshape(B, T, D), k_BKSh, v_BKSh, mail)
