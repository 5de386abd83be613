"""Static configuration: frozen, hashable, checked when built, so that each value can be a static argument of `jax.jit`."""

import dataclasses
import math

FAMILIES = ("llama", "qwen2", "qwen3")
MASK_INITS = ("mean", "last_k", "sample", "offset")
MAX_MASKS = 3
MAX_OFFSET = 1e6  # deviations; an infinite mask would put NaN into the attention of every row


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder-only transformer computes; one class for the Llama, Qwen2 and Qwen3 (dense) families.

    Attributes:
      family: "llama", "qwen2" or "qwen3"; a label for messages, the switches below decide what is computed.
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
      rope_divisors: h/2 numbers that divide the rotary frequencies (Llama 3.1 scaling), or empty for none.
      has_qkv_bias: True when q, k and v have biases (Qwen2).
      has_qk_norm: True when each q and k head is RMS-normed before rope (Qwen3).
      is_tied: True when the head is the embedding table.
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
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}.")
        for name in ("has_qkv_bias", "has_qk_norm", "is_tied"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if not self.norm_eps > 0 or not self.rope_theta > 0:
            raise ValueError(f"norm_eps {self.norm_eps} and rope_theta {self.rope_theta} must be above 0.")

    @property
    def queries_per_kv(self) -> int:
        """G = H / K: query heads that share one key and value head."""
        return self.num_heads // self.num_kv_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How future tokens are asked for and laid out as a draft tree. No masks and no tree is plain decoding.

    Attributes:
      tree: K_1..K_k of a static tree, or "dynamic" (Algorithm 1), which also needs `num_masks` and `block_complexity`.
      num_masks: k, mask tokens of each node; filled in from a static tree when left at None.
      block_complexity: rows a call may have, (k+1)(1 + nodes), Eq. (7); the budget of a dynamic tree, an upper bound
        for a static one.
      mask_init: first value of the masks: "mean" of the prompt, "last_k" of the prompt, "sample" or "offset" (from the
        mean and deviation of the embedding table).
      mask_offset: c of the "offset" init, mean + c * deviation.
      prune: True replaces a candidate equal to its parent's token by the next best (Section 3.5).
      rank_with_noise: True ranks the drafts of sampled rows by logits plus the noise that the position will draw with.

    Source: ESP (arXiv:2603.17942), Sections 3.2 to 3.5, Algorithm 1, Appendix D.
    """

    tree: tuple[int, ...] | str = ()
    num_masks: int | None = None
    block_complexity: int | None = None
    mask_init: str = "mean"
    mask_offset: float = 5.0
    prune: bool = True
    rank_with_noise: bool = True

    def __post_init__(self) -> None:
        if self.mask_init not in MASK_INITS:
            raise ValueError(f"mask_init must be one of {', '.join(MASK_INITS)}, got {self.mask_init!r}.")
        if not abs(self.mask_offset) <= MAX_OFFSET:  # true of nan too
            raise ValueError(f"mask_offset must be a number of at most {MAX_OFFSET:g} in size, got {self.mask_offset}.")
        if self.is_dynamic:
            self._check_dynamic()
        else:
            self._check_static()

    def _check_dynamic(self) -> None:
        if self.tree != "dynamic":
            raise ValueError(f"tree must be numbers of candidates, such as (15, 4), or 'dynamic', got {self.tree!r}.")
        if self.num_masks is None or self.block_complexity is None:
            raise ValueError("a dynamic tree needs num_masks and block_complexity, such as 2 and 60.")
        if type(self.num_masks) is not int or type(self.block_complexity) is not int:
            raise ValueError(
                f"num_masks and block_complexity must be whole numbers, got {self.num_masks!r} and {self.block_complexity!r}."
            )
        if not 1 <= self.num_masks <= MAX_MASKS:
            raise ValueError(f"num_masks must be 1 to {MAX_MASKS} for a dynamic tree, got {self.num_masks}.")
        least = (self.num_masks + 1) * (self.num_masks + 1)
        if self.block_complexity < least:
            raise ValueError(
                f"block_complexity {self.block_complexity} leaves no room for {self.num_masks} nodes in depth with "
                f"{self.num_masks} masks; raise it to {least} or more, or lower num_masks."
            )

    def _check_static(self) -> None:
        tree = (self.tree,) if isinstance(self.tree, int) else tuple(self.tree)
        object.__setattr__(self, "tree", tree)
        if self.num_masks is None:
            object.__setattr__(self, "num_masks", len(tree))
        if len(tree) != self.num_masks:
            raise ValueError(
                f"{self.num_masks} masks need a tree of {self.num_masks} numbers, one a mask, got {list(tree)}; "
                f"give such a tree, or leave num_masks out."
            )
        if len(tree) > MAX_MASKS:
            raise ValueError(f"a tree has at most {MAX_MASKS} depths, got {list(tree)}.")
        if any(type(width) is not int or width < 1 for width in tree):
            raise ValueError(f"each depth of a tree needs a whole number of candidates, at least 1, got {list(tree)}.")
        if self.block_complexity is not None and self.num_rows > self.block_complexity:
            raise ValueError(
                f"tree {list(tree)} makes {self.num_rows} rows, but block_complexity is {self.block_complexity}; raise it "
                f"or use fewer candidates."
            )

    @property
    def is_dynamic(self) -> bool:
        """True when the tree's shape is chosen anew each call, from the candidates' probabilities."""
        return isinstance(self.tree, str)

    @property
    def depth(self) -> int:
        """k: masks of a node, and edges from the root to the deepest node."""
        assert self.num_masks is not None  # __post_init__ fills it in
        return self.num_masks

    @property
    def num_nodes(self) -> int:
        """N: nodes of the tree, root included."""
        if self.is_dynamic:
            assert self.block_complexity is not None
            return self.block_complexity // (self.depth + 1)
        return 1 + sum(self.pool_sizes)

    @property
    def num_rows(self) -> int:
        """R = N (k+1): rows of one call, the real block complexity."""
        return self.num_nodes * (self.depth + 1)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        """Candidates looked at for each depth: all are kept in a static tree, the best N - 1 in a dynamic one."""
        if isinstance(self.tree, str):
            budget = self.num_nodes - 1
            return tuple(budget - i for i in range(self.depth))
        return self.tree

    @property
    def num_candidates(self) -> int:
        """C: candidates kept of each mask; one more than the widest pool, for the one that pruning may take out."""
        return max(self.pool_sizes, default=0) + int(self.prune)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """The static part of a decoding run; another value is another compiled program.

    Attributes:
      capacity: S, cache slots of a row; a row needs prompt + new tokens - 1 of them.
      is_sampled: True when some row has a temperature above 0; a greedy program draws no noise.
      prefill_chunk: prompt tokens that enter the model at a time.
    """

    capacity: int
    is_sampled: bool = False
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.prefill_chunk < 1:
            raise ValueError(
                f"capacity and prefill_chunk must be at least 1, got {self.capacity} and {self.prefill_chunk}."
            )
