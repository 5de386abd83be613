"""The draft source that merges all others: one tree from everything that the model and the text have said.

    successors   what the model last ranked best after a token          (Token Recycling, arXiv:2408.08696)
    pairs        the same after the last two tokens
    ngrams       what followed the newest one to nine tokens            (prompt lookup)
    masks        what mask tokens at the likeliest ends of the tree guess (ESP, arXiv:2603.17942)

Every node is asked of all of them. That a candidate is accepted if its parent is has a learned probability
(`acceptance.py`), and the tree is best-first by the product along the path (`grow.py`).
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates
from jax_probe_mtp.drafting.mask_probe import ProbeRows
from jax_probe_mtp.drafting.mask_tokens import AUTO
from jax_probe_mtp.drafting.merged.acceptance import MOST, STEP
from jax_probe_mtp.drafting.merged.facts import FORMAT, MASK_CANDIDATES
from jax_probe_mtp.drafting.merged.grow import grow
from jax_probe_mtp.drafting.merged.keys import CONTEXT
from jax_probe_mtp.drafting.merged.learned import Learned, begin, learn, newest, read_chunk, read_prompts
from jax_probe_mtp.drafting.merged.memory import MASK_BUCKET_WIDTH, MAX_IDS, Sizes, pack
from jax_probe_mtp.drafting.probe import Probe
from jax_probe_mtp.drafting.shown import FinishedCall, Model, PromptChunk, Prompts, ReadPrompts, Text
from jax_probe_mtp.drafting.source import MAX_NODES, DraftSource, SourceState, check_whole
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS
from jax_probe_mtp.drafting.tree import Tree
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.top_k import smallest

TABLES = ("successors", "pairs", "ngrams")
MASK_OPTIONS = ("mask_init", "mask_offset", "mask_ema", "rank_with_noise")
MAX_DEPTH = 8
# The share of all paths that go through a node, in 2^20ths, by its cost in 64ths of a nat.
_SHARE = np.round(np.exp(-np.arange(1 + MAX_DEPTH * MOST) / STEP) * (1 << 20)).astype(np.int32)


class MergedRows(flax.struct.PyTreeNode, kw_only=True):
    """What each row has of its own.

    Attributes:
      recent_BL: int32 [B, 9], the newest tokens, the root last; `NO_TOKEN` in front of the text.
      probe: of the masks; () without masks.
      learned: what a cold row has learned; () of a warm source.
    """

    recent_BL: jax.Array
    probe: Any
    learned: Any


class MergedShared(flax.struct.PyTreeNode, kw_only=True):
    """What all rows share.

    Attributes:
      masks: tuned masks, float32 [1, D]; () where none were brought.
      learned: what a warm source has learned; () of a cold one.
    """

    masks: Any = ()
    learned: Any = ()


@dataclasses.dataclass(frozen=True)
class Merged(DraftSource):
    """Drafts the likeliest paths that any of its sources knows.

    Attributes:
      rows: R, rows of one call: the tree's nodes, the root included, and one mask for each node that owns one.
      mask_owners: nodes that own a mask, those where the walk most likely ends; None takes rows / 8, from 2 to 8.
      depth: edges of the longest path.
      warm: True for tables and weights that all rows share and that stay for the prompts to come; False for those of a row
        alone, made from nothing but its own prompt and text.
      without: a source that is left out, or several with a + between: successors, pairs, ngrams. None leaves out none;
        `mask_owners` 0 leaves out the masks.
      is_learning: False keeps the weights as they begin.
      mask_init, mask_offset, mask_ema, rank_with_noise: of the masks, as of `Probe`.
    """

    rows: int = 64
    mask_owners: int | None = dataclasses.field(default=None, kw_only=True)
    depth: int = dataclasses.field(default=MAX_DEPTH, kw_only=True)
    warm: bool = dataclasses.field(default=False, kw_only=True)
    without: str | None = dataclasses.field(default=None, kw_only=True)
    is_learning: bool = dataclasses.field(default=True, kw_only=True)
    mask_init: str = dataclasses.field(default=AUTO, kw_only=True)
    mask_offset: float = dataclasses.field(default=5.0, kw_only=True)
    mask_ema: float | None = dataclasses.field(default=None, kw_only=True)
    rank_with_noise: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_whole("rows", self.rows, 4, MAX_NODES)
        check_whole("depth", self.depth, 1, MAX_DEPTH)
        if self.mask_owners is not None:
            check_whole("mask_owners", self.mask_owners, 0, self.rows // 2)
            if self.mask_owners == _usual_owners(self.rows):
                object.__setattr__(self, "mask_owners", None)  # so that one source has one name
        for name in ("warm", "is_learning", "rank_with_noise"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if self.without is not None:
            named = self.without.split("+") if isinstance(self.without, str) else [self.without]
            if not set(named) <= set(TABLES):
                raise ValueError(
                    f"without must name some of {', '.join(TABLES)} with a + between (mask_owners 0 leaves out masks), got "
                    f"{self.without!r}."
                )
            object.__setattr__(self, "without", "+".join(name for name in TABLES if name in named))
        if not self.num_owned and not self.tables:
            raise ValueError("nothing is left to draft from: keep one of the tables, or mask_owners above 0.")
        if self.num_owned:
            object.__setattr__(self, "mask_ema", self._probe.mask_ema)  # checks the options, and gives one name
        elif any(getattr(self, name) != getattr(type(self), name) for name in MASK_OPTIONS):
            raise ValueError(f"mask_owners 0 leaves no masks: leave {', '.join(MASK_OPTIONS)} out.")

    @property
    def num_owned(self) -> int:
        """Counts the nodes that own a mask."""
        return _usual_owners(self.rows) if self.mask_owners is None else self.mask_owners

    @property
    def tables(self) -> frozenset[str]:
        """Names the tables that are asked."""
        return frozenset(TABLES) - set((self.without or "").split("+"))

    @property
    def _probe(self) -> Probe:
        return Probe(
            (MASK_CANDIDATES,),
            mask_init=self.mask_init,
            mask_offset=self.mask_offset,
            mask_ema=self.mask_ema,
            rank_with_noise=self.rank_with_noise,
        )

    @property
    def num_masks(self) -> int:
        return int(self.num_owned > 0)

    @property
    def num_owners(self) -> int | None:
        return self.num_owned or None

    @property
    def num_nodes(self) -> int:
        return self.rows - self.num_owned

    @property
    def max_depth(self) -> int:
        return min(self.depth, self.num_nodes - 1)

    @property
    def num_candidates(self) -> int:
        return self.num_nodes - 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names the source that alone knew a draft, or says that several did."""
        return (*TABLES, "masks", "several")

    @property
    def learns_shared(self) -> bool:
        return self.warm

    @property
    def shared_format(self) -> int:
        return FORMAT

    @property
    def needs_shared(self) -> str | None:
        return self._probe.needs_shared if self.num_owned else None

    def check(self, cfg: ModelConfig, prompt_length: int | None = None) -> None:
        least = MASK_CANDIDATES + 1 if self.num_owned else NUM_SUCCESSORS
        if cfg.vocab_size < least:
            raise ValueError(
                f"a merged draft looks at the {least} best tokens, but the vocabulary has {cfg.vocab_size}; use another draft "
                f"source."
            )
        if cfg.vocab_size > MAX_IDS:
            raise ValueError(
                f"the tables hold ids below {MAX_IDS}, but the vocabulary has {cfg.vocab_size}; use another draft."
            )
        if self.num_owned:
            self._probe.check(cfg, prompt_length)

    def init_shared(self, cfg: ModelConfig) -> MergedShared | tuple[()]:
        masks = self._probe.init_shared(cfg) if self.num_owned else ()
        return self.complete_shared(cfg, masks)

    def complete_shared(self, cfg: ModelConfig, brought: Any) -> Any:
        if not self.warm or type(brought) is MergedShared:
            return brought
        return MergedShared(masks=brought, learned=begin(1, Sizes.of_all(cfg.vocab_size), self.tables))

    def start(self, model: Model, prompts: Prompts, shared: Any) -> SourceState:
        B = prompts.length_B.size
        state = SourceState(
            rows=MergedRows(
                recent_BL=newest(prompts.token_BT, prompts.length_B),
                probe=self._probe.start(model, prompts, self._masks_of(shared)).rows if self.num_owned else (),
                learned=()
                if self.warm
                else begin(B, Sizes.of_row(prompts.capacity, model.cfg.vocab_size), self.tables),
            ),
            shared=shared,
        )
        if "ngrams" not in self.tables:
            return state
        return self._with_learned(state, read_prompts(self._learned(state), prompts))

    def read(self, state: SourceState, chunk: PromptChunk) -> SourceState:
        if not {"successors", "pairs"} & self.tables:
            return state
        return self._with_learned(state, read_chunk(self._learned(state), chunk))

    def try_masks(self, state: SourceState, prompts: ReadPrompts) -> SourceState:
        if not self.num_owned:
            return state
        tried = self._probe.try_masks(SourceState(rows=state.rows.probe), prompts)
        return state.replace(rows=state.rows.replace(probe=tried.rows))

    def masks(self, state: SourceState) -> jax.Array:
        return self._probe.masks(SourceState(rows=state.rows.probe))

    def propose(self, state: SourceState, text: Text) -> Candidates:
        learned, rows = self._learned(state), state.rows
        mask_BC = None
        if self.num_owned:
            probe: ProbeRows = rows.probe
            mask_BC = pack(*self._probe.under(rows.recent_BL[:, -1], probe), MASK_BUCKET_WIDTH)
        return grow(
            learned.memory,
            learned.weights.whole_YF,
            rows.recent_BL,
            mask_BC,
            self.tables,
            num_drafts=self.num_nodes - 1,
            max_depth=self.max_depth,
        )

    def owners(self, state: SourceState, tree: Tree) -> jax.Array:
        """Chooses the nodes at which the walk most likely ends: the share of paths through a node less its children's."""
        cost_BN = jnp.round(-tree.score_BN * STEP)
        is_there_BN = tree.token_BN != NO_TOKEN
        place_BN = jnp.where(is_there_BN, cost_BN, 0).astype(jnp.int32)
        share_BN = jnp.where(is_there_BN, jnp.asarray(_SHARE)[place_BN], -1)
        is_child_BNN = tree.parent_BN[:, None, :] == jnp.arange(self.num_nodes, dtype=jnp.int32)[None, :, None]
        of_children_BN = jnp.sum(
            jnp.where(is_child_BNN, jnp.maximum(share_BN, 0)[:, None, :], 0), axis=2, dtype=jnp.int32
        )
        return smallest(of_children_BN - share_BN, self.num_owned)[1]

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        rows: MergedRows = state.rows
        learned = learn(
            self._learned(state),
            rows.recent_BL,
            call,
            tables=self.tables,
            is_learning=self.is_learning,
        )
        text_BT = jnp.concatenate([rows.recent_BL, call.new_token_BP], axis=1)
        after = rows.replace(recent_BL=newest(text_BT, CONTEXT + call.num_new_B))
        if self.num_owned:
            after = after.replace(probe=self._probe.learn(SourceState(rows=rows.probe), call).rows)
        return self._with_learned(state.replace(rows=after), learned)

    def _masks_of(self, shared: Any) -> Any:
        return shared.masks if self.warm else shared

    def _learned(self, state: SourceState) -> Learned:
        learned: Learned = state.shared.learned if self.warm else state.rows.learned
        return learned

    def _with_learned(self, state: SourceState, learned: Learned) -> SourceState:
        if self.warm:
            return state.replace(shared=state.shared.replace(learned=learned))
        return state.replace(rows=state.rows.replace(learned=learned))


def _usual_owners(rows: int) -> int:
    return min(8, max(2, rows // 8))
