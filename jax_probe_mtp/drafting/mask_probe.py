"""The draft source of the method: mask tokens are appended to the model's input, and their logits propose what comes.

This file has all of it but the layout of the tree, which is in `probe.py`.

Source: ESP (arXiv:2603.17942), Sections 3.2 to 3.5, Algorithm 1, Appendix D.
"""

import abc
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting import mask_tokens
from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Candidates, Children, Paths, fixed_candidates
from jax_probe_mtp.drafting.mask_tokens import AUTO, INITS, MAX_OFFSET, TRIED, TUNED, init_masks, update_masks
from jax_probe_mtp.drafting.shown import FinishedCall, Model, Prompts, ReadPrompts, Text
from jax_probe_mtp.drafting.source import DraftSource, SourceState
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.sampling import Sampling, gumbel_noise


class ProbeRows(flax.struct.PyTreeNode, kw_only=True):
    """The masks of each row and what those of its last accepted node proposed, best first.

    Attributes:
      masks_BMD: float32 [B, M, D]; cast where they enter the model.
      ema_B: float32 [B], lambda of Eq. (5).
      id_BMC: int32 [B, M, C], for each depth under the next root; `NO_TOKEN` before the first call, and after one whose last
        node owned no masks.
      score_BMC: float32 [B, M, C], their log-probabilities.
    """

    masks_BMD: jax.Array
    ema_B: jax.Array
    id_BMC: jax.Array
    score_BMC: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskProbe(DraftSource):
    """Everything about the masks but the layout of the tree.

    Attributes:
      mask_init: first value of the masks: "mean" of the prompt, "last_k" of the prompt, "sample" or "offset" (from the
        mean and deviation of the embedding table), "vocabulary" (the table's mean), "zero", "tuned" (what the caller brings as
        `shared`, float32 [M, D]) or "auto", the one of a few that guesses best in the prompt (`mask_tokens.choose_masks`).
      mask_offset: c of the "offset" init, mean + c * deviation.
      mask_ema: lambda of Eq. (5), how far the masks move to each new token; 0 freezes them. None is what goes with the init:
        0.1 with the paper's, 0 with the others; "auto" chooses it too.
      prune: True replaces a candidate equal to its parent's token by the next best (Section 3.5).
      rank_with_noise: True ranks the drafts of sampled rows by logits plus the noise that the position will draw with.
    """

    mask_init: str = dataclasses.field(default=AUTO, kw_only=True)
    mask_offset: float = dataclasses.field(default=5.0, kw_only=True)
    mask_ema: float | None = dataclasses.field(default=None, kw_only=True)
    prune: bool = dataclasses.field(default=True, kw_only=True)
    rank_with_noise: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.mask_init not in INITS:
            raise ValueError(f"mask_init must be one of {', '.join(INITS)}, got {self.mask_init!r}.")
        if not abs(self.mask_offset) <= MAX_OFFSET:  # true of nan too
            raise ValueError(f"mask_offset must be a number of at most {MAX_OFFSET:g} in size, got {self.mask_offset}.")
        if self.mask_offset != type(self).mask_offset and self.mask_init != "offset":
            raise ValueError(f"mask_offset {self.mask_offset:g} is of mask_init offset; give both.")
        if self.mask_ema is not None and not 0 <= self.mask_ema <= 1:
            raise ValueError(f"mask_ema must be between 0 (frozen masks) and 1, got {self.mask_ema}.")
        if self.mask_init != AUTO and self.mask_ema == mask_tokens.usual_ema(self.mask_init):
            object.__setattr__(self, "mask_ema", None)  # so that one source has one name

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

    @property
    def needs_shared(self) -> str | None:
        return "tuned masks" if self.mask_init == TUNED else None

    def init_shared(self, cfg: ModelConfig) -> Any:
        return jnp.zeros((self.num_masks, cfg.width), jnp.float32) if self.mask_init == TUNED else ()

    def start(self, model: Model, prompts: Prompts, shared: Any) -> SourceState:
        B, M = prompts.length_B.size, self.num_masks
        init, ema = self.tried[0]
        if init == TUNED:
            masks_BMD = jnp.broadcast_to(shared, (B, *shared.shape))
        else:
            masks_BMD = init_masks(
                model.embedding_table(),
                model.embed(prompts.token_BT),
                prompts.length_B,
                prompts.seed_B,
                num_masks=M,
                init=init,
                offset=self.mask_offset,
            )
        rows = ProbeRows(
            masks_BMD=masks_BMD,
            ema_B=jnp.full(B, ema, jnp.float32),
            id_BMC=jnp.full((B, M, self.num_kept), NO_TOKEN, jnp.int32),
            score_BMC=jnp.full((B, M, self.num_kept), -jnp.inf, jnp.float32),
        )
        return SourceState(rows=rows, shared=shared)

    @property
    def tried(self) -> mask_tokens.Tried:
        """Lists the inits that are tried on a prompt, each with its lambda; the first is what a short prompt gets."""
        if self.mask_init != AUTO:
            return (
                (self.mask_init, mask_tokens.usual_ema(self.mask_init) if self.mask_ema is None else self.mask_ema),
            )
        if self.mask_ema is None:
            return TRIED
        return tuple((init, self.mask_ema) for init in dict.fromkeys(init for init, _ in TRIED))

    def try_masks(self, state: SourceState, prompts: ReadPrompts) -> SourceState:
        if self.mask_init != AUTO:
            return state
        mask_BD, ema_B = mask_tokens.choose_masks(prompts, self.tried)
        masks_BMD = jnp.broadcast_to(mask_BD[:, None], state.rows.masks_BMD.shape)
        return state.replace(rows=state.rows.replace(masks_BMD=masks_BMD, ema_B=ema_B))

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

    def under(self, root_B: jax.Array, rows: ProbeRows) -> tuple[jax.Array, jax.Array]:
        """Gives what the first mask proposes under the root, best first, int32 [B, C], with its log-probabilities."""
        id_BC, score_BC = self._but(root_B, rows.id_BMC[:, 0], rows.score_BMC[:, 0])
        size = self.num_kept - int(self.prune)
        return id_BC[:, :size], score_BC[:, :size]

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        """Moves the masks to the new tokens, and takes the C best of each mask with their log-probabilities."""
        rows: ProbeRows = state.rows
        new_BPD = call.model.embed(call.new_token_BP)
        id_BMC, score_BMC = self._best(call)
        has_masks_B11 = call.has_masks_B[:, None, None]
        rows = rows.replace(
            masks_BMD=update_masks(rows.masks_BMD, new_BPD, call.num_new_B, rows.ema_B),
            id_BMC=jnp.where(has_masks_B11, id_BMC, NO_TOKEN),
            score_BMC=jnp.where(has_masks_B11, score_BMC, -jnp.inf),
        )
        return state.replace(rows=rows)

    def _best(self, call: FinishedCall) -> tuple[jax.Array, jax.Array]:
        """Takes the C best tokens of each mask, int32 [B, M, C], and their log-probabilities, float32 [B, M, C].

        Sampled rows are ranked by logits / T, by default plus the noise that the position will draw with. Log-probabilities
        are those without the noise, but where the tree's shape follows from them and the noise should too.
        """
        logits = call.mask_logits
        if call.sampling is not None:
            logits = logits.scale(call.sampling.temperature_B)
        ranked = logits
        if call.sampling is not None and self.rank_with_noise:
            noise_BMV = self._noise(call.sampling, call.root_position_B, logits.vocab_size)
            ranked = Logits.of(logits.whole() + noise_BMV)
        best_BMC, id_BMC = ranked.top_k(self.num_kept)
        if self.noise_shapes_tree:
            logits = ranked
        elif ranked is not logits:
            best_BMC = logits.at(id_BMC)
        # Rounding may leave the logarithm of a probability above 0, and a child above its parent.
        return id_BMC, jnp.minimum(best_BMC - logits.logsumexp(), 0)

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
