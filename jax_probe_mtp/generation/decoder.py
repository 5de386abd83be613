"""Prompts in, texts and counts out: batches, compiled programs and their timing around the decode loop."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import step as decode_loop
from jax_probe_mtp.decoding.batch import Request
from jax_probe_mtp.drafting import recycle
from jax_probe_mtp.drafting import source as sources
from jax_probe_mtp.drafting.draft_config import DraftConfig, ProbeConfig, RecycleConfig, check_is_draft, draft_name
from jax_probe_mtp.generation import tokenizer as text
from jax_probe_mtp.generation.programs import Program, Programs
from jax_probe_mtp.generation.prompts import Generation, Prompt, Settings, Stats
from jax_probe_mtp.generation.row import make_generation
from jax_probe_mtp.generation.scheduler import ContinuousDecoder, InOrder
from jax_probe_mtp.generation.waiting import make_batch, make_newcomer
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DecodeConfig
from jax_probe_mtp.model.params import Params

DEFAULT_DRAFT = ProbeConfig(tree=(14,))  # the better tree of the two with 30 rows in docs/fidelity.md


class Decoder:
    """The compiled programs of one checkpoint and one way of drafting, kept for the batches to come.

    Compilation is done ahead of the call, so that it never hides in a timing.
    """

    def __init__(self, checkpoint: Checkpoint, draft_cfg: DraftConfig, programs: Programs | None = None) -> None:
        """Args: the model, where drafts come from, and another decoder's programs for the same two, to share them."""
        if not isinstance(checkpoint, Checkpoint):
            raise ValueError(f"checkpoint must be what load_checkpoint gives, got {checkpoint!r:.80}.")
        check_is_draft(draft_cfg)
        self.checkpoint = checkpoint
        self.draft_cfg = draft_cfg
        self.stats = Stats()
        self._table: recycle.Table | None = None
        if isinstance(draft_cfg, RecycleConfig) and draft_cfg.keeps_table:
            self._table = recycle.empty_table(1, checkpoint.config.vocab_size, draft_cfg)
        self.programs = Programs(checkpoint, draft_cfg) if programs is None else programs
        self._has_run: set[Any] = set()

    def run(self, prompts: Sequence[Prompt], settings: Settings) -> Iterator[Generation]:
        """Generates, in order, with all rows kept busy. All prompts are checked before the first one runs.

        Raises:
          ValueError: one line with the values and a way out; see `make_request`.
        """
        return self._run(self.stream(prompts, settings), prompts)

    def _run(self, stream: ContinuousDecoder, prompts: Sequence[Prompt]) -> Iterator[Generation]:
        in_order = InOrder()
        for update in stream.run(in_order.watch(enumerate(prompts))):
            yield from (generation for _, generation in in_order.add(update.finished))
        self._table = stream.table

    def stream(self, prompts: Sequence[Prompt], settings: Settings, *, streams_text: bool = False) -> ContinuousDecoder:
        """What decodes these prompts, with no more rows than prompts; each is checked."""
        capacity = settings.capacity or 1
        for prompt in prompts:
            decode_cfg = make_newcomer(self.checkpoint, self.draft_cfg, prompt, settings)[2]
            capacity = max(capacity, decode_cfg.capacity)
        shards = self.programs.num_shards
        rows = max(1, -(-len(prompts) // shards)) * shards
        if settings.batch_size > rows:
            settings = dataclasses.replace(settings, batch_size=rows)
        return ContinuousDecoder(
            self.checkpoint,
            self.draft_cfg,
            settings,
            capacity=capacity,
            is_sampled=any(prompt.of("temperature", settings) > 0 for prompt in prompts),
            streams_text=streams_text,
            programs=self.programs,
            stats=self.stats,
            table=self._table,
        )

    def stream_text(self, prompt: Prompt, settings: Settings) -> Iterator[str]:
        """One answer in pieces, whole characters only, as its calls give them. The prompt is checked at once."""
        updates = self.stream([prompt], settings, streams_text=True).run([(0, prompt)])
        return (text for update in updates for _, text in update.new_text)

    def run_batch(self, batch: Sequence[Prompt], settings: Settings) -> list[Generation]:
        """One batch of at most `settings.batch_size` prompts, with idle rows in the places left.

        What is new to this decoder is compiled and run once for two tokens before it is timed: a program's first run
        also loads it.
        """
        if settings.is_exact:
            raise ValueError("a batch on its own has no exact mode: its rows are prefilled together; use `run`.")
        prompt_BT, request, decode_cfg = self.request(batch, settings, settings.batch_size)
        shape = (prompt_BT.shape, decode_cfg)
        if shape not in self._has_run:
            stats, table = dataclasses.replace(self.stats), self._table
            prompt_length_B = jnp.minimum(request.prompt_length_B, 2)
            max_new_tokens_B = jnp.minimum(request.max_new_tokens_B, 2)
            short = request.replace(prompt_length_B=prompt_length_B, max_new_tokens_B=max_new_tokens_B)
            self._decode(prompt_BT, short, decode_cfg)
            stats.compile_seconds = self.stats.compile_seconds
            self.stats, self._table = stats, table
            self._has_run.add(shape)
        return list(self._generations(batch, settings, self._decode(prompt_BT, request, decode_cfg)))

    def _generations(
        self, batch: Sequence[Prompt], settings: Settings, state: decode_loop.DecodeState
    ) -> Iterator[Generation]:
        draft = draft_name(self.draft_cfg, settings.mask_ema)
        tokens, lengths, calls, accepted = jax.device_get(
            (state.token_BT, state.length_B, state.calls_B, state.accepted_by_depth_BD)
        )
        for row, prompt in enumerate(batch):
            token_ids = tokens[row, len(prompt.token_ids) : lengths[row] + 1].tolist()  # the newest is at `length`
            counts = {"calls": int(calls[row]), "accepted_by_depth": accepted[row].tolist()}
            generation = make_generation(self.checkpoint, prompt, token_ids, draft=draft, **counts)
            self.stats.count(generation)
            yield generation

    def request(
        self, batch: Sequence[Prompt], settings: Settings, rows: int | None = None
    ) -> tuple[jax.Array, Request, DecodeConfig]:
        """One batch as arrays, padded with idle rows to `rows`; see `make_batch`."""
        return make_batch(self.checkpoint, self.draft_cfg, batch, settings, rows)

    def _decode(self, prompt_BT: jax.Array, request: Request, decode_cfg: DecodeConfig) -> decode_loop.DecodeState:
        prefill, run_steps = self.compile(prompt_BT, request, decode_cfg)
        params = self.checkpoint.params
        start = time.perf_counter()
        state = jax.block_until_ready(prefill(params, prompt_BT, request, self._table))
        filled = time.perf_counter()
        state = jax.block_until_ready(run_steps(params, request, state))
        self.stats.prefill_seconds += filled - start
        self.stats.seconds += time.perf_counter() - start
        self._table = sources.table_to_keep(state.source, self.draft_cfg)
        return state

    def compile(self, prompt_BT: jax.Array, request: Request, decode_cfg: DecodeConfig) -> tuple[Program, Program]:
        """Prefill and decode loop for a batch of these shapes, compiled once; takes what `request` returns.

        They are two programs, so that a new prompt length compiles a prefill and no second decode loop. Several threads
        may compile at a time.
        """
        if self.programs.mesh is not None:
            raise ValueError("a batch on its own runs on one device; use `run`, which decodes on a mesh too.")
        before = self.programs.compile_seconds
        static: dict[str, Any] = {"decode_cfg": decode_cfg}
        prefill = self.programs.get(_prefill, prompt_BT, request, self._table, **static)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), prefill.out_info)
        run_steps = self.programs.get(decode_loop.run_steps, request, state, donate=(2,), **static)
        self.stats.compile_seconds += self.programs.compile_seconds - before
        return prefill, run_steps


def _prefill(
    params: Params, prompt_BT: jax.Array, request: Request, table: recycle.Table | None, **static: Any
) -> decode_loop.DecodeState:
    return decode_loop.prefill(params, prompt_BT, request, table=table, **static)


def generate(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    *,
    draft: DraftConfig | None = None,
    settings: Settings | None = None,
    use_chat_template: bool = True,
) -> list[Generation]:
    """Answers each prompt; the tokens are plain decoding's, in fewer calls.

    Args:
      checkpoint: from `checkpoints_convert.load_checkpoint`.
      prompts: user prompts, or plain texts to go on with when `use_chat_template` is False.
      draft: where drafts come from, and their tree; 1 mask and 14 candidates when left out. `ProbeConfig()` is plain
        decoding.
      settings: limits, sampling and batch size.
      use_chat_template: True puts each prompt into the checkpoint's chat template.

    Returns:
      One `Generation` a prompt, in order, their ids counted from 0.

    Raises:
      ValueError: one line with the values and a way out.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of texts, got one text; put it into a list.")
    decoder = Decoder(checkpoint, DEFAULT_DRAFT if draft is None else draft)
    records = [
        Prompt(id=i, token_ids=text.encode(checkpoint.tokenizer, prompt, use_chat_template=use_chat_template))
        for i, prompt in enumerate(prompts)
    ]
    return list(decoder.run(records, Settings() if settings is None else settings))


def stream(
    checkpoint: Checkpoint,
    prompt: str,
    *,
    draft: DraftConfig | None = None,
    settings: Settings | None = None,
    use_chat_template: bool = True,
) -> Iterator[str]:
    """Answers one prompt piece by piece: the pieces together are the text that `generate` gives.

    Args:
      checkpoint: from `checkpoints_convert.load_checkpoint`.
      prompt: a user prompt, or plain text to go on with when `use_chat_template` is False.
      draft: as for `generate`.
      settings: as for `generate`; a piece comes after every `calls_per_chunk` calls, after each one when left out.
      use_chat_template: as for `generate`.

    Returns:
      An iterator over texts, none of them empty. No character is cut in two, and a text that may yet become a stop string
      waits until that is known.

    Raises:
      ValueError: one line with the values and a way out.
    """
    decoder = Decoder(checkpoint, DEFAULT_DRAFT if draft is None else draft)
    token_ids = text.encode(checkpoint.tokenizer, prompt, use_chat_template=use_chat_template)
    return decoder.stream_text(
        Prompt(id=0, token_ids=token_ids), Settings(calls_per_chunk=1) if settings is None else settings
    )
