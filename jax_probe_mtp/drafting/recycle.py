"""The draft source Token Recycling: a table of the successors that the model itself last ranked best after each token.

Every row of every call gives the best next tokens after its own token, those of rejected drafts and of the prompt too.
Following the table from the root makes the next tree.

Source: Token Recycling (arXiv:2408.08696).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Candidates, Children, Paths, fixed_candidates
from jax_probe_mtp.drafting.shown import FinishedCall, Model, PromptChunk, Prompts, Text
from jax_probe_mtp.drafting.source import MAX_NODES, DraftSource, SourceState, check_whole
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS, best_successors, read_pieces
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.logits import Logits

MAX_DEPTH = 6  # as deep as the paper's tree; 4 to 16 give tau 2.13 to 2.17 with 60 nodes (SmolLM2, 26 prompts)
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


class Table(flax.struct.PyTreeNode, kw_only=True):
    """Each token's latest best successors, best first; Y tables: one a row (cold), or one for all rows (warm).

    Attributes:
      id_YVC: int32 [Y, V, 8], `NO_TOKEN` until the token has been in a call.
      score_YVC: float32 [Y, V, 8], their log-probabilities.
    """

    id_YVC: jax.Array
    score_YVC: jax.Array


@dataclasses.dataclass(frozen=True)
class Recycle(DraftSource):
    """Drafts the most likely paths through the table.

    Attributes:
      tree: N, nodes of a best-first tree, root included; or "static80", the paper's fixed tree of 80 drafts.
      warm: True for one table that all rows share and that stays for the prompts to come; False for a table a row,
        made from nothing but its own prompt and text.

    Source: Token Recycling (arXiv:2408.08696), Algorithm 1 and the authors' tree template 2.2.2; best-first trees, which
    take the successors' probabilities into the table, are this project's.
    """

    tree: int | str = 60
    warm: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.tree, str):
            if self.tree != "static80":
                raise ValueError(f"tree must be a number of nodes, such as 60, or 'static80', got {self.tree!r}.")
        else:
            check_whole("tree", self.tree, 2, MAX_NODES)
        if not isinstance(self.warm, bool):
            raise ValueError(f"warm must be True or False, got {self.warm!r}.")

    @property
    def learns_shared(self) -> bool:
        return self.warm

    @property
    def max_depth(self) -> int:
        return len(STATIC80_CHILDREN) if isinstance(self.tree, str) else min(self.tree - 1, MAX_DEPTH)

    @property
    def num_nodes(self) -> int:
        return 1 + sum(map(sum, STATIC80_CHILDREN)) if isinstance(self.tree, str) else self.tree

    @property
    def num_candidates(self) -> int:
        return self.num_nodes - 1 if isinstance(self.tree, str) else sum(self.level_sizes)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Paths that a best-first tree follows from each depth: at most N - d of its N nodes are at depth d."""
        sizes = [1]
        for depth in range(1, self.max_depth + 1):
            sizes.append(min(sizes[-1] * NUM_SUCCESSORS, self.num_nodes - depth))
        return tuple(sizes[1:])

    def check(self, cfg: ModelConfig, prompt_length: int | None = None) -> None:
        if cfg.vocab_size < NUM_SUCCESSORS:
            raise ValueError(
                f"the table keeps {NUM_SUCCESSORS} successors of a token, but the vocabulary has {cfg.vocab_size} tokens; "
                f"use another draft source."
            )

    def init_shared(self, cfg: ModelConfig) -> Table | tuple[()]:
        return empty_table(1, cfg.vocab_size) if self.warm else ()

    def start(self, model: Model, prompts: Prompts, shared: Table | tuple[()]) -> SourceState:
        if self.warm:
            return SourceState(shared=shared)
        return SourceState(rows=empty_table(prompts.token_BT.shape[0], model.cfg.vocab_size), shared=shared)

    def read(self, state: SourceState, chunk: PromptChunk) -> SourceState:
        def keep(
            table: Table, token_BR: jax.Array, before_BR: jax.Array, is_used_BR: jax.Array, logits: Logits
        ) -> Table:
            return harvest(table, token_BR, is_used_BR, *best_successors(logits, chunk.sampling))

        return self._with_table(state, read_pieces(chunk, keep, self._table(state)))

    def propose(self, state: SourceState, text: Text) -> Candidates:
        """Follows the table from the root: the paper's fixed tree, or enough paths to find the best N - 1 of them.

        From each depth as many paths are followed as a best-first tree of N nodes can have there, so the candidates hold
        the best N - 1 paths of `max_depth` edges at most, and no search gives better ones.
        """
        follow = _static_tree if isinstance(self.tree, str) else self._best_paths
        return follow(self._table(state), text.root_B)

    def _best_paths(self, table: Table, root_B: jax.Array) -> Candidates:
        B = root_B.shape[0]
        token_BW, score_BW = root_B[:, None], jnp.zeros((B, 1), jnp.float32)
        index_BW = jnp.full((B, 1), NO_PARENT, jnp.int32)
        tokens, parents, scores, listed = [], [], [], 0
        for width in self.level_sizes:
            id_BWC, step_BWC = _successors(table, token_BW)
            path_BC = (score_BW[..., None] + step_BWC).reshape(B, -1)
            parent_BC = jnp.repeat(index_BW, NUM_SUCCESSORS, axis=1)
            score_BW, best_BW = jax.lax.top_k(path_BC, width)
            token_BW = jnp.take_along_axis(id_BWC.reshape(B, -1), best_BW, axis=1)
            tokens.append(token_BW)
            parents.append(jnp.take_along_axis(parent_BC, best_BW, axis=1))
            scores.append(score_BW)
            index_BW = jnp.broadcast_to(listed + jnp.arange(width, dtype=jnp.int32), (B, width))
            listed += width
        depth_P = np.repeat(np.arange(1, self.max_depth + 1, dtype=np.int32), self.level_sizes)
        return Candidates(
            token_BP=jnp.concatenate(tokens, axis=1),
            parent_BP=jnp.concatenate(parents, axis=1),
            depth_BP=jnp.broadcast_to(jnp.asarray(depth_P), (B, listed)),
            score_BP=jnp.concatenate(scores, axis=1),
            kind_BP=jnp.zeros((B, listed), jnp.int32),
        )

    def children(self, state: SourceState, text: Text, paths: Paths) -> Children | None:
        """Answers for any node with the successors of its token."""
        id_BWC, step_BWC = _successors(self._table(state), paths.token_BW)
        return Children(token_BWC=id_BWC, feature_BWCf=step_BWC[..., None])

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        is_used_BN = (call.tree.token_BN != NO_TOKEN) & (call.num_new_B > 0)[:, None]
        best = best_successors(call.node_logits, call.sampling)
        return self._with_table(state, harvest(self._table(state), call.tree.token_BN, is_used_BN, *best))

    def _table(self, state: SourceState) -> Table:
        table: Table = state.shared if self.warm else state.rows
        return table

    def _with_table(self, state: SourceState, table: Table) -> SourceState:
        return state.replace(shared=table) if self.warm else state.replace(rows=table)


def empty_table(num_tables: int, vocab_size: int) -> Table:
    """Makes tables that know nothing."""
    shape = (num_tables, vocab_size, NUM_SUCCESSORS)
    return Table(id_YVC=jnp.full(shape, NO_TOKEN, jnp.int32), score_YVC=jnp.full(shape, -jnp.inf, jnp.float32))


def harvest(table: Table, token_BR: jax.Array, is_used_BR: jax.Array, id_BRC: jax.Array, score_BRC: jax.Array) -> Table:
    """Writes the best successors of each row's token. Where a token is there twice the last one wins.

    In a shared table the rows come in the order of the batch, and a scatter leaves open which of two writes to one place
    stays: so all but the last are taken out first.

    Args:
      table: Y is B or 1.
      token_BR: int32 [B, R], the tokens that were in the call.
      is_used_BR: bool [B, R], False for rows that must leave no trace.
      id_BRC: int32 [B, R, 8], their best successors.
      score_BRC: float32 [B, R, 8].
    """
    Y, V, C = table.id_YVC.shape
    token_YR = jnp.where(is_used_BR, token_BR, V).reshape(Y, -1)
    is_same_YRR = token_YR[:, :, None] == token_YR[:, None, :]
    is_later_1RR = jnp.triu(jnp.ones(is_same_YRR.shape[1:], jnp.bool_), k=1)[None]
    target_YR = jnp.where(jnp.any(is_same_YRR & is_later_1RR, axis=2), V, token_YR)  # V is outside: dropped
    at = table.id_YVC.at[jnp.arange(Y)[:, None], target_YR]
    score_at = table.score_YVC.at[jnp.arange(Y)[:, None], target_YR]
    return table.replace(
        id_YVC=at.set(id_BRC.reshape(Y, -1, C), mode="drop"),
        score_YVC=score_at.set(score_BRC.reshape(Y, -1, C), mode="drop"),
    )


def _static_tree(table: Table, root_B: jax.Array) -> Candidates:
    level_BW, score_BW = root_B[:, None], jnp.zeros((root_B.size, 1), jnp.float32)
    tokens, scores, parents, depths = [], [], [], []
    first_of_level, listed = NO_PARENT, 0
    for depth, num_children in enumerate(STATIC80_CHILDREN, start=1):
        above_W = np.repeat(np.arange(len(num_children)), num_children)
        rank_W = np.concatenate([np.arange(count) for count in num_children])
        id_BWC, step_BWC = _successors(table, level_BW)
        level_BW = id_BWC[:, above_W, rank_W]
        score_BW = score_BW[:, above_W] + step_BWC[:, above_W, rank_W]
        tokens.append(level_BW)
        scores.append(score_BW)
        parents.append(first_of_level + above_W)
        depths.append(np.full(above_W.size, depth))
        first_of_level, listed = listed, listed + above_W.size
    return fixed_candidates(
        jnp.concatenate(tokens, axis=1),
        np.concatenate(parents),
        np.concatenate(depths),
        jnp.concatenate(scores, axis=1),
    )


def _successors(table: Table, token_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Looks up ids and log-probabilities [B, W, 8] of what may follow; the ids are `NO_TOKEN` after `NO_TOKEN`."""
    Y = table.id_YVC.shape[0]
    table_B1 = (jnp.arange(token_BW.shape[0]) % Y)[:, None]
    index = (table_B1, jnp.maximum(token_BW, 0))
    id_BWC = jnp.where((token_BW == NO_TOKEN)[..., None], NO_TOKEN, table.id_YVC[index])
    return id_BWC, table.score_YVC[index]  # a path that NO_TOKEN is on has -inf already
