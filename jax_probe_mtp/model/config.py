"""What a model computes, as a static argument of `jax.jit`: frozen, hashable, checked when built."""

import dataclasses
import math

FAMILIES = ("llama", "qwen2", "qwen3", "smollm3")
DATA, TENSOR = "data", "tensor"  # axes of a device mesh: batch rows are split over one, weights over the other


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder-only transformer computes; one class for all families, by switches.

    Attributes:
      family: one of `FAMILIES`; a label for messages, the switches below decide what is computed.
      vocab_size: V, rows of the embedding and of the head.
      width: D, size of the residual stream.
      num_layers: L.
      num_heads: H, query heads.
      num_kv_heads: K, key and value heads; divides H.
      head_dim: h, size of one head; even, since rope turns pairs.
      mlp_width: F, inner size of the gated MLP.
      context_length: positions the model was made for.
      norm_eps: epsilon of every RMS norm.
      rope_theta: base of the rotary frequencies.
      rope_divisors: h/2 numbers that divide the rotary frequencies (Llama 3.1's, YaRN's or a linear scaling), or none.
      rope_scale: what cosines and sines are multiplied by (YaRN's attention factor, arXiv:2309.00071).
      no_rope_layers: numbers of the layers whose rows are not turned by their positions, in order (SmolLM3).
      has_qkv_bias: True when q, k and v have biases (Qwen2).
      has_qk_norm: True when each q and k head is RMS-normed before rope (Qwen3).
      is_tied: True when the head is the embedding table.
      is_sharded: True inside `jax.shard_map` over the axes `DATA` and `TENSOR`: weights are this device's part, and heads
        and mlp width are counted in it (`mesh.local_config`). The vocabulary is counted whole.
      has_mailboxes: True where those devices can write into each other's memory, so that sums may go that way
        (`kernels/exchange.py`).
    """

    family: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_divisors: tuple[float, ...] = ()
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    is_tied: bool = False
    # Without a repr: `fingerprint` reads those of the others.
    rope_scale: float = dataclasses.field(default=1.0, repr=False)
    no_rope_layers: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    is_sharded: bool = dataclasses.field(default=False, repr=False)  # no part of what the model is
    has_mailboxes: bool = dataclasses.field(default=False, repr=False)

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "width",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_width",
            "context_length",
        )
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rope, got {self.head_dim}.")
        if self.rope_divisors and len(self.rope_divisors) != self.head_dim // 2:
            raise ValueError(f"rope_divisors must hold {self.head_dim // 2} numbers, got {len(self.rope_divisors)}.")
        if not all(isinstance(x, int | float) and 0 < x < math.inf for x in self.rope_divisors):
            raise ValueError(f"rope_divisors must be finite numbers above 0, got {list(self.rope_divisors)}.")
        if not isinstance(self.rope_scale, int | float) or not 0 < self.rope_scale < math.inf:
            raise ValueError(f"rope_scale must be a finite number above 0, got {self.rope_scale!r}.")
        bounds = zip((-1, *self.no_rope_layers), (*self.no_rope_layers, self.num_layers), strict=True)
        if not all(type(layer) is int and last < layer for last, layer in bounds):
            raise ValueError(
                f"no_rope_layers must be layers from 0 to {self.num_layers - 1} in order, got {list(self.no_rope_layers)}."
            )
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}.")
        for name in ("has_qkv_bias", "has_qk_norm", "is_tied", "is_sharded", "has_mailboxes"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if not self.norm_eps > 0 or not self.rope_theta > 0:
            raise ValueError(f"norm_eps {self.norm_eps} and rope_theta {self.rope_theta} must be above 0.")

    @property
    def queries_per_kv(self) -> int:
        """Counts the query heads that share one key and value head, G = H / K."""
        return self.num_heads // self.num_kv_heads
