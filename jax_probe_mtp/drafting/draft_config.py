"""How to draft: one frozen configuration a draft source, checked when built; each can be a static argument of `jax.jit`.

All have four sizes in common, which is what the decode loop needs to know of a source: `num_nodes` of its tree, root
included; `max_depth`, edges from the root to the deepest node; `masks_per_node`; and `num_rows` of a call. `keeps_table`
says whether a batch hands something on to the next.
"""

import dataclasses
from collections.abc import Sequence

DEFAULT_MASK_EMA = 0.1  # lambda of ESP's Eq. (5)
MASK_INITS = ("mean", "last_k", "sample", "offset")
MAX_MASKS = 3
MAX_OFFSET = 1e6  # deviations; an infinite mask would put NaN into the attention of every row
NGRAM_MATCHES = ("recent", "first")
MAX_NGRAM = 16
MAX_NGRAM_DRAFTS = 64
MAX_RECYCLE_NODES = 256
MAX_RECYCLE_DEPTH = 6  # as deep as the paper's tree; 4 to 16 give tau 2.13 to 2.17 with 60 nodes (SmolLM2, 26 prompts)
# The paper's tree, level by level in breadth-first order: how many children each node of the level above has, always the
# best of its successors; nodes left out at the end of a level have none.
STATIC80_CHILDREN = (
    (8,),
    (8, 4, 3, 2, 1, 1, 1, 1),
    (8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1),
    (5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1),
    (3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1),
    (2, 0, 0, 1),
)


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
        if not isinstance(self.tree, int | Sequence):
            raise ValueError(f"tree must be numbers of candidates, such as (15, 4), or 'dynamic', got {self.tree!r}.")
        tree = (self.tree,) if isinstance(self.tree, int) else tuple(self.tree)
        object.__setattr__(self, "tree", tree)
        if self.num_masks is None:
            object.__setattr__(self, "num_masks", len(tree))
        if len(tree) != self.num_masks or type(self.num_masks) is not int:
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
    def keeps_table(self) -> bool:
        """True when a table stays from batch to batch."""
        return False

    @property
    def is_dynamic(self) -> bool:
        """True when the tree's shape is chosen anew each call, from the candidates' probabilities."""
        return isinstance(self.tree, str)

    @property
    def masks_per_node(self) -> int:
        """k: mask tokens of the root and of every other node."""
        assert self.num_masks is not None  # __post_init__ fills it in
        return self.num_masks

    @property
    def max_depth(self) -> int:
        """Edges from the root to the deepest node: one a mask."""
        return self.masks_per_node

    @property
    def num_nodes(self) -> int:
        """N: nodes of the tree, root included."""
        if self.is_dynamic:
            assert self.block_complexity is not None
            return self.block_complexity // (self.max_depth + 1)
        return 1 + sum(self.pool_sizes)

    @property
    def num_rows(self) -> int:
        """R = N (k+1): rows of one call, the real block complexity."""
        return self.num_nodes * (self.max_depth + 1)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        """Candidates looked at for each depth: all are kept in a static tree, the best N - 1 in a dynamic one."""
        if isinstance(self.tree, str):
            budget = self.num_nodes - 1
            return tuple(budget - i for i in range(self.max_depth))
        return self.tree

    @property
    def num_candidates(self) -> int:
        """C: candidates kept of each mask; one more than the widest pool, for the one that pruning may take out."""
        return max(self.pool_sizes, default=0) + int(self.prune)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """Prompt lookup: the text after an earlier occurrence of the newest tokens is the draft, a chain.

    Attributes:
      num_drafts: tokens of the chain at most.
      max_ngram: n, the most tokens that are compared; the longest match is taken, down to one token.
      match: which of several equally long matches: the "recent" one or the "first". With `max_ngram` 2, "first" is
        transformers' rule; "recent" needs fewer calls (docs/results).

    Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), as in transformers.
    """

    num_drafts: int = 10
    max_ngram: int = 5
    match: str = "recent"

    def __post_init__(self) -> None:
        _check_whole("num_drafts", self.num_drafts, 1, MAX_NGRAM_DRAFTS)
        _check_whole("max_ngram", self.max_ngram, 1, MAX_NGRAM)
        if self.match not in NGRAM_MATCHES:
            raise ValueError(f"match must be one of {', '.join(NGRAM_MATCHES)}, got {self.match!r}.")

    @property
    def keeps_table(self) -> bool:
        """True when a table stays from batch to batch."""
        return False

    @property
    def masks_per_node(self) -> int:
        """No mask tokens."""
        return 0

    @property
    def max_depth(self) -> int:
        """Edges from the root to the end of the chain."""
        return self.num_drafts

    @property
    def num_nodes(self) -> int:
        """N: nodes of the tree, root included."""
        return 1 + self.num_drafts

    @property
    def num_rows(self) -> int:
        """Rows of one call."""
        return self.num_nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecycleConfig:
    """Token Recycling: a table of each token's latest best successors, filled by every row of every call.

    Attributes:
      tree: N, nodes of a best-first tree, root included; or "static80", the paper's fixed tree of 80 drafts.
      is_warm: True for one table that all rows share and that stays for the prompts to come; False for a table a row,
        made from nothing but its own prompt and text.

    Source: Token Recycling (arXiv:2408.08696), Algorithm 1 and the authors' tree template 2.2.2; best-first trees, which
    take the successors' probabilities into the table, are this project's.
    """

    tree: int | str = 60
    is_warm: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.tree, str):
            if self.tree != "static80":
                raise ValueError(f"tree must be a number of nodes, such as 60, or 'static80', got {self.tree!r}.")
        else:
            _check_whole("tree", self.tree, 2, MAX_RECYCLE_NODES)
        if not isinstance(self.is_warm, bool):
            raise ValueError(f"is_warm must be True or False, got {self.is_warm!r}.")

    @property
    def keeps_table(self) -> bool:
        """True when a table stays from batch to batch."""
        return self.is_warm

    @property
    def is_static(self) -> bool:
        """True when the tree has the same shape in every call."""
        return isinstance(self.tree, str)

    @property
    def masks_per_node(self) -> int:
        """No mask tokens."""
        return 0

    @property
    def max_depth(self) -> int:
        """Edges from the root to the deepest node; a best-first tree is cut there."""
        return len(STATIC80_CHILDREN) if isinstance(self.tree, str) else min(self.tree - 1, MAX_RECYCLE_DEPTH)

    @property
    def num_nodes(self) -> int:
        """N: nodes of the tree, root included."""
        return 1 + sum(map(sum, STATIC80_CHILDREN)) if isinstance(self.tree, str) else self.tree

    @property
    def num_rows(self) -> int:
        """Rows of one call."""
        return self.num_nodes


DraftConfig = ProbeConfig | NgramConfig | RecycleConfig
PLAIN = ProbeConfig()  # plain decoding: no masks, no drafts
_OPTION_OF = {  # field -> what `runs.py` calls it
    "mask_init": "init",
    "mask_offset": "offset",
    "prune": "prune",
    "rank_with_noise": "noise",
    "max_ngram": "n",
    "match": "match",
    "is_warm": "warm",
}


def check_is_draft(draft_cfg: object) -> None:
    """Raises ValueError where it is none of the three configurations, such as the name of one."""
    if not isinstance(draft_cfg, DraftConfig):
        raise ValueError(f"draft_cfg must be a ProbeConfig, NgramConfig or RecycleConfig, got {draft_cfg!r:.80}.")


def draft_name(draft_cfg: DraftConfig, mask_ema: float = DEFAULT_MASK_EMA) -> str:
    """The draft source as `runs.parse_run` reads it, such as "probe:14"; what is not the default stands behind an @."""
    options: dict[str, object] = {}
    for field in dataclasses.fields(draft_cfg):
        value = getattr(draft_cfg, field.name)
        if field.name in _OPTION_OF and value != field.default:
            options[_OPTION_OF[field.name]] = int(value) if isinstance(value, bool) else value
    if isinstance(draft_cfg, NgramConfig):
        name = f"ngram:{draft_cfg.num_drafts}"
    elif isinstance(draft_cfg, RecycleConfig):
        name = f"recycle:{draft_cfg.tree}"
    elif not draft_cfg.masks_per_node:
        return "ar"
    else:
        shape = f"dynamic{draft_cfg.block_complexity}k{draft_cfg.num_masks}"
        name = f"probe:{shape if draft_cfg.is_dynamic else '+'.join(map(str, draft_cfg.tree))}"
        if draft_cfg.mask_init != "offset":
            options.pop("offset", None)  # it has no effect
        if mask_ema != DEFAULT_MASK_EMA:
            options["ema"] = mask_ema
    return name + ("@" + ",".join(f"{option}={value}" for option, value in options.items()) if options else "")


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}.")
