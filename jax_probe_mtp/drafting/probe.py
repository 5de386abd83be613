"""The draft source of the method: mask tokens are appended to the model's input, and their logits propose what comes.

Two ways to lay the proposals out as a tree: `Probe`, of a fixed shape, and `DynamicProbe`, whose probabilities choose it.

Source: ESP (arXiv:2603.17942), Sections 3.2 to 3.5, Algorithm 1, Appendix D.
"""

import abc
import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Candidates, Children, Paths, fixed_candidates
from jax_probe_mtp.drafting.mask_tokens import DEFAULT_EMA, INITS, MAX_MASKS, MAX_OFFSET, init_masks, update_masks
from jax_probe_mtp.drafting.source import DraftSource, FinishedCall, Model, Prompts, SourceState, Text
from jax_probe_mtp.drafting.top_k import top_k
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.sampling import Sampling, gumbel_noise, scale


class ProbeRows(flax.struct.PyTreeNode, kw_only=True):
    """The masks of each row and what those of its last accepted node proposed, best first.

    Attributes:
      masks_BMD: float32 [B, M, D]; cast where they enter the model.
      id_BMC: int32 [B, M, C], for each depth under the next root; `NO_TOKEN` before the first call, and after one whose last
        node owned no masks.
      score_BMC: float32 [B, M, C], their log-probabilities.
    """

    masks_BMD: jax.Array
    id_BMC: jax.Array
    score_BMC: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskProbe(DraftSource):
    """Everything about the masks but the layout of the tree.

    Attributes:
      mask_init: first value of the masks: "mean" of the prompt, "last_k" of the prompt, "sample" or "offset" (from the
        mean and deviation of the embedding table).
      mask_offset: c of the "offset" init, mean + c * deviation.
      mask_ema: lambda of Eq. (5), how far the masks move to each new token; 0 freezes them.
      prune: True replaces a candidate equal to its parent's token by the next best (Section 3.5).
      rank_with_noise: True ranks the drafts of sampled rows by logits plus the noise that the position will draw with.
    """

    mask_init: str = dataclasses.field(default="mean", kw_only=True)
    mask_offset: float = dataclasses.field(default=5.0, kw_only=True)
    mask_ema: float = dataclasses.field(default=DEFAULT_EMA, kw_only=True)
    prune: bool = dataclasses.field(default=True, kw_only=True)
    rank_with_noise: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.mask_init not in INITS:
            raise ValueError(f"mask_init must be one of {', '.join(INITS)}, got {self.mask_init!r}.")
        if not abs(self.mask_offset) <= MAX_OFFSET:  # true of nan too
            raise ValueError(f"mask_offset must be a number of at most {MAX_OFFSET:g} in size, got {self.mask_offset}.")
        if self.mask_offset != type(self).mask_offset and self.mask_init != "offset":
            raise ValueError(f"mask_offset {self.mask_offset:g} is of mask_init offset; give both.")
        if not 0 <= self.mask_ema <= 1:
            raise ValueError(f"mask_ema must be between 0 (frozen masks) and 1, got {self.mask_ema}.")

    @property
    def noise_shapes_tree(self) -> bool:
        """Says whether the tree's shape follows from scores that hold the noise of sampled rows."""
        return False

    @property
    @abc.abstractmethod
    def pool_sizes(self) -> tuple[int, ...]:
        """Candidates that are listed for each depth."""

    @property
    def num_candidates(self) -> int:
        return sum(self.pool_sizes)

    @property
    def max_depth(self) -> int:
        return self.num_masks  # mask i proposes depth i

    @property
    def num_kept(self) -> int:
        """Counts the tokens kept of each mask, C: one more than the widest pool, for the one that pruning may take out."""
        return max(self.pool_sizes) + int(self.prune)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("probe",)

    def check(self, cfg: ModelConfig, prompt_length: int | None = None) -> None:
        if self.num_kept > cfg.vocab_size:
            raise ValueError(
                f"the tree looks at {self.num_kept} candidates of a mask (with pruning one more than its widest depth), "
                f"but the vocabulary has {cfg.vocab_size} tokens; use fewer."
            )
        if self.mask_init == "last_k" and prompt_length is not None and prompt_length < self.num_masks:
            raise ValueError(
                f"{prompt_length} tokens are too few: mask_init last_k with {self.num_masks} masks needs as many; use "
                f"mask_init mean."
            )

    def start(self, model: Model, prompts: Prompts, shared: tuple[()]) -> SourceState:
        masks_BMD = init_masks(
            model.embedding_table(),
            model.embed(prompts.token_BT),
            prompts.length_B,
            prompts.seed_B,
            num_masks=self.num_masks,
            init=self.mask_init,
            offset=self.mask_offset,
        )
        shape = (*masks_BMD.shape[:2], self.num_kept)
        nothing = {"id_BMC": jnp.full(shape, NO_TOKEN, jnp.int32), "score_BMC": jnp.full(shape, -jnp.inf, jnp.float32)}
        return SourceState(rows=ProbeRows(masks_BMD=masks_BMD, **nothing), shared=shared)

    def masks(self, state: SourceState) -> jax.Array:
        masks_BMD: jax.Array = state.rows.masks_BMD
        return masks_BMD

    def propose(self, state: SourceState, text: Text) -> Candidates:
        """Hangs the candidates of each depth under the top-1 node of the depth above; a path's score is their product.

        Source: ESP (arXiv:2603.17942), Sections 3.4 and 3.5, Algorithm 1, Appendix D.
        """
        parent_token_B, path_score_B1 = text.root_B, jnp.zeros((text.root_B.size, 1), jnp.float32)
        token_pools, score_pools = [], []
        for i, size in enumerate(self.pool_sizes):
            id_BC, score_BC = self._but(parent_token_B, state.rows.id_BMC[:, i], state.rows.score_BMC[:, i])
            token_pools.append(id_BC[:, :size])
            score_pools.append(path_score_B1 + score_BC[:, :size])
            parent_token_B, path_score_B1 = id_BC[:, 0], score_pools[-1][:, :1]

        sizes = self.pool_sizes
        pool_start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)  # the top-1 candidate of each depth
        depth_P = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
        parent_P = np.concatenate([[NO_PARENT], pool_start])[depth_P - 1].astype(np.int32)
        score_BP = jnp.concatenate(score_pools, axis=1)
        return fixed_candidates(jnp.concatenate(token_pools, axis=1), parent_P, depth_P, score_BP)

    def children(self, state: SourceState, text: Text, paths: Paths) -> Children | None:
        """Answers for any node with what the mask of its depth proposed: a mask does not know its owner's children."""
        if paths.depth >= self.num_masks:
            return None
        rows: ProbeRows = state.rows
        of_mask = rows.id_BMC[:, paths.depth], rows.score_BMC[:, paths.depth]
        id_BWC, score_BWC = jax.vmap(self._but, in_axes=(1, None, None), out_axes=1)(paths.token_BW, *of_mask)
        size = self.num_kept - int(self.prune)
        return Children(token_BWC=id_BWC[..., :size], feature_BWCf=score_BWC[..., :size, None])

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        """Moves the masks to the new tokens, and takes the C best of each mask with their log-probabilities."""
        rows: ProbeRows = state.rows
        new_BPD = call.model.embed(call.new_token_BP)
        id_BMC, score_BMC = self._best(call)
        has_masks_B11 = call.has_masks_B[:, None, None]
        rows = rows.replace(
            masks_BMD=update_masks(rows.masks_BMD, new_BPD, call.num_new_B, self.mask_ema),
            id_BMC=jnp.where(has_masks_B11, id_BMC.astype(jnp.int32), NO_TOKEN),
            score_BMC=jnp.where(has_masks_B11, score_BMC, -jnp.inf),
        )
        return state.replace(rows=rows)

    def _best(self, call: FinishedCall) -> tuple[jax.Array, jax.Array]:
        """Takes the C best tokens of each mask, int32 [B, M, C], and their log-probabilities, float32 [B, M, C].

        Sampled rows are ranked by logits / T, by default plus the noise that the position will draw with. Log-probabilities
        are those without the noise, but where the tree's shape follows from them and the noise should too.
        """
        logits_BMV = call.mask_logits_BMV
        if call.sampling is not None:
            logits_BMV = scale(logits_BMV, call.sampling.temperature_B)
        ranked_BMV = logits_BMV
        if call.sampling is not None and self.rank_with_noise:
            ranked_BMV = logits_BMV + self._noise(call.sampling, call.root_position_B, logits_BMV.shape[-1])
        best_BMC, id_BMC = top_k(ranked_BMV, self.num_kept)
        if self.noise_shapes_tree:
            logits_BMV = ranked_BMV
        elif ranked_BMV is not logits_BMV:
            best_BMC = jnp.take_along_axis(logits_BMV, id_BMC, axis=-1)
        total_BM1 = jax.nn.logsumexp(logits_BMV, axis=-1, keepdims=True)
        # Rounding may leave the logarithm of a probability above 0, and a child above its parent.
        return id_BMC.astype(jnp.int32), jnp.minimum(best_BMC - total_BM1, 0)

    def _noise(self, sampling: Sampling, root_position_B: jax.Array, vocab_size: int) -> jax.Array:
        """Draws the noise of the positions that the masks propose tokens for, float32 [B, M, V]; 0 for greedy rows."""
        is_drawn_B1 = jnp.where(sampling.temperature_B > 0, 1.0, 0.0)[:, None]
        noises = [
            is_drawn_B1 * gumbel_noise(sampling.seed_B, root_position_B + 1 + i, vocab_size)
            for i in range(self.num_masks)
        ]  # mask i proposes the token i places after the root's successor
        return jnp.stack(noises, axis=1)

    def _but(self, token_B: jax.Array, id_BC: jax.Array, score_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Takes `token_B` out of the candidates where the probe prunes; those behind it move up.

        The last place then repeats and is not used.
        """
        if not self.prune:
            return id_BC, score_BC
        is_behind_BC = jnp.cumsum(id_BC == token_B[:, None], axis=1) > 0
        source_BC = jnp.minimum(jnp.arange(id_BC.shape[1])[None] + is_behind_BC.astype(jnp.int32), id_BC.shape[1] - 1)
        return jnp.take_along_axis(id_BC, source_BC, axis=1), jnp.take_along_axis(score_BC, source_BC, axis=1)


@dataclasses.dataclass(frozen=True)
class Probe(MaskProbe):
    """A static tree: the K_i best of mask i, hung under the top-1 node of the depth above.

    Attributes:
      widths: K_1..K_k, one a mask; a single number stands for one mask.

    Source: ESP (arXiv:2603.17942), Appendix D.
    """

    widths: tuple[int, ...] = (14,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.widths, int | Sequence) or isinstance(self.widths, str):
            raise ValueError(f"widths must be numbers of candidates, such as (15, 4), got {self.widths!r}.")
        widths = (self.widths,) if isinstance(self.widths, int) else tuple(self.widths)
        object.__setattr__(self, "widths", widths)
        if not 1 <= len(widths) <= MAX_MASKS:
            raise ValueError(f"a tree has 1 to {MAX_MASKS} depths, got {list(widths)}; Plain() is plain decoding.")
        if any(type(width) is not int or width < 1 for width in widths):
            raise ValueError(
                f"each depth of a tree needs a whole number of candidates, at least 1, got {list(widths)}."
            )

    @property
    def num_masks(self) -> int:
        return len(self.widths)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        return self.widths


@dataclasses.dataclass(frozen=True)
class DynamicProbe(MaskProbe):
    """A tree whose shape is chosen anew each call, from the candidates' probabilities, within a budget of rows.

    Attributes:
      rows: block complexity, rows that a call may have, (k+1)(1 + nodes), Eq. (7).
      num_masks: k, mask tokens of each node.

    Source: ESP (arXiv:2603.17942), Algorithm 1.
    """

    rows: int = 60
    num_masks: int = dataclasses.field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "num_masks"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}.")
        if not 1 <= self.num_masks <= MAX_MASKS:
            raise ValueError(f"num_masks must be 1 to {MAX_MASKS} for a dynamic tree, got {self.num_masks}.")
        least = (self.num_masks + 1) * (self.num_masks + 1)
        if self.rows < least:
            raise ValueError(
                f"{self.rows} rows leave no room for {self.num_masks} nodes in depth with {self.num_masks} masks; raise "
                f"rows to {least} or more, or lower num_masks."
            )

    @property
    def noise_shapes_tree(self) -> bool:
        return True

    @property
    def num_nodes(self) -> int:
        return self.rows // (self.num_masks + 1)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        budget = self.num_nodes - 1
        return tuple(budget - i for i in range(self.num_masks))
