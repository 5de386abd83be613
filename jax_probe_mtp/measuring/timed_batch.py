"""Batches that are decoded each on its own, prefill and decode loop timed apart: what a bench compares."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding.batch import Batch, make_batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.source import DraftSource, check_is_source
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.generation.answers import Generation, Stats, make_generation
from jax_probe_mtp.generation.programs import REQUEST, ROWS, Program, Programs, results_of
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedAnswer:
    """What came of one prompt of a batch.

    Attributes:
      generation: the answer.
      accepted_by_kind: accepted drafts by their kind, as the source names it.
    """

    generation: Generation
    accepted_by_kind: dict[str, int]


class TimedBatches:
    """Decodes batches with one checkpoint and one way of drafting; what was compiled or learned serves the next.

    Compilation is done ahead of the call, so that it never hides in a timing.

    Attributes:
      checkpoint: the model.
      source: where drafts come from.
      stats: sums over what was run.
      programs: what was compiled.
    """

    def __init__(self, checkpoint: Checkpoint, source: DraftSource, shared: Any = None) -> None:
        """Prepares; compiles nothing yet.

        Args:
          checkpoint: the model.
          source: where drafts come from.
          shared: what its rows share, if the caller brings that.

        Raises:
          ValueError: for a source that changes its size between chunks: a batch here is one loop of calls.
        """
        check_is_source(source)
        if source.sizes:
            raise ValueError(
                f"{draft_name(source)} changes its size between chunks of calls, and a batch that is timed is one loop; name "
                f"sizes to compare, such as merged:16 and merged:64."
            )
        self.checkpoint, self.source = checkpoint, source
        self.stats = Stats()
        self.programs = Programs(checkpoint, source)
        self._shared = self.programs.begin_shared(shared)
        self._has_run: set[Any] = set()

    def lay_out(self, prompts: Sequence[Prompt], settings: Settings, rows: int | None = None) -> Batch:
        """Makes a batch of the prompts, padded with idle rows to `rows`; see `make_batch`."""
        eos = self.checkpoint.eos_token_ids
        return make_batch(self.checkpoint.config, self.source, prompts, settings, eos_token_ids=eos, rows=rows)

    def run(self, prompts: Sequence[Prompt], settings: Settings) -> list[TimedAnswer]:
        """Decodes at most `settings.batch_size` prompts together, with idle rows in the places left.

        What is new to this object is compiled and run once for two tokens before it is timed: a program's first run also
        loads it.
        """
        if settings.is_exact:
            raise ValueError("a batch on its own has no exact mode: its rows are prefilled together; use Decoder.run.")
        batch = self.lay_out(prompts, settings, settings.batch_size)
        shape = (batch.prompt_BT.shape, batch.config, jax.tree.structure(batch))
        if shape not in self._has_run:
            stats, shared = dataclasses.replace(self.stats), self._shared
            short = batch.request.replace(
                prompt_length_B=np.minimum(batch.request.prompt_length_B, 2),
                max_new_tokens_B=np.minimum(batch.request.max_new_tokens_B, 2),
            )
            self._decode(batch.replace(request=short))
            stats.compile_seconds = self.stats.compile_seconds
            self.stats, self._shared = stats, shared
            self._has_run.add(shape)
        return list(self._answers(prompts, settings, self._decode(batch)))

    def compile(self, batch: Batch) -> tuple[Program, Program]:
        """Compiles prefill and decode loop for a batch of these shapes, once.

        They are two programs, so that a new prompt length compiles a prefill and no second decode loop. Several threads
        may compile at a time.
        """
        before = self.programs.compile_seconds
        static: dict[str, Any] = {"decode_cfg": batch.config, "gives": self.programs.state}
        takes = ROWS, REQUEST, self.programs.shared
        prompt_BT, request, shared = self._placed(batch)
        fill = self.programs.get(_prefill, prompt_BT, request, shared, takes=takes, **static)
        go_on = self.programs.get(run_steps, request, results_of(fill), donate=(2,), **static)
        self.stats.compile_seconds += self.programs.compile_seconds - before
        return fill, go_on

    def _placed(self, batch: Batch) -> tuple[Any, Request, Any]:
        """Lays out what the prefill takes."""
        place = self.programs.place
        return place(batch.prompt_BT), place(batch.request), place(self._shared, self.programs.shared)

    def _decode(self, batch: Batch) -> DecodeState:
        fill, go_on = self.compile(batch)
        params, (prompt_BT, request, shared) = self.checkpoint.params, self._placed(batch)
        start = time.perf_counter()
        state = jax.block_until_ready(fill(params, prompt_BT, request, shared))
        filled = time.perf_counter()
        state = jax.block_until_ready(go_on(params, request, state))
        self.stats.prefill_seconds += filled - start
        self.stats.seconds += time.perf_counter() - start
        self._shared = state.source.shared
        return state

    def _answers(self, prompts: Sequence[Prompt], settings: Settings, state: DecodeState) -> Iterator[TimedAnswer]:
        draft = draft_name(self.source)
        tokens, lengths, calls, by_depth, by_kind = jax.device_get(
            (state.token_BT, state.length_B, state.calls_B, state.accepted_by_depth_BX, state.accepted_by_kind_BZ)
        )
        for row, prompt in enumerate(prompts):
            token_ids = tokens[row, len(prompt.token_ids) : lengths[row] + 1].tolist()  # the newest is at `length`
            counts = {"calls": int(calls[row]), "accepted_by_depth": by_depth[row].tolist()}
            generation = make_generation(self.checkpoint, prompt, settings, token_ids, draft=draft, **counts)
            self.stats.count(generation)
            kinds = dict(zip(self.source.kinds, by_kind[row].tolist(), strict=True))
            yield TimedAnswer(generation=generation, accepted_by_kind=kinds)


def _prefill(
    params: Params,
    prompt_BT: jax.Array,
    request: Request,
    shared: Any,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> DecodeState:
    return prefill(params, prompt_BT, request, cfg, source, decode_cfg, shared)
