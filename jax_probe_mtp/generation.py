"""Prompts in, texts and counts out: batches, compiled programs and their timing around the decode loop."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp import decode_loop, recycle, sources
from jax_probe_mtp import tokenizer as text
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import DecodeConfig
from jax_probe_mtp.draft_config import DEFAULT_MASK_EMA, DraftConfig, ProbeConfig, RecycleConfig, draft_name
from jax_probe_mtp.request import Request, make_request

Program = Callable[..., Any]
DEFAULT_DRAFT = ProbeConfig(tree=(14,))  # the better tree of the two with 30 rows in docs/fidelity.md


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One record to generate from.

    Attributes:
      id: names the record; also picks its noise when it has no seed of its own.
      token_ids: the prompt.
      seed: seed of its noise, 0 to 2**32 - 1; from the run's seed and the id when None.
    """

    id: str | int
    token_ids: list[int]
    seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to generate; the values that `make_request` checks, and the size of a batch."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    mask_ema: float = DEFAULT_MASK_EMA
    batch_size: int = 1
    capacity: int | None = None
    prompt_slots: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What came of one prompt.

    Attributes:
      id: the prompt's.
      prompt_ids: its token ids.
      token_ids: the new tokens, the end-of-text token included where it was generated.
      text: their text, without special tokens.
      finish_reason: "stop" at an end-of-text token, "length" at the limit.
      draft: what drafted it, by `draft_name`.
      calls: decode calls, without the prefill.
      committed: tokens that those calls gave; the prefill's first token is not among them.
      accepted_by_depth: drafts accepted at depth 1, 2, ..., before the cut at the end of the text.
    """

    id: str | int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    draft: str
    calls: int
    committed: int
    accepted_by_depth: list[int]


@dataclasses.dataclass
class Stats:
    """Sums over a run: tau is `committed / calls`; `seconds` holds the prefills, and no compilation."""

    calls: int = 0
    committed: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def tau(self) -> float:
        """Acceptance length: tokens a decode call gives; 1 for plain decoding, and where there was no call."""
        return self.committed / self.calls if self.calls else 1.0

    def __str__(self) -> str:
        speed = self.new_tokens / self.seconds if self.seconds else 0.0
        return (
            f"tau {self.tau:.3f}, {self.calls} calls for {self.committed} tokens, {speed:.1f} tokens/s "
            f"({self.new_tokens} tokens in {self.seconds:.2f} s, and {self.compile_seconds:.1f} s of compilation)"
        )


class Decoder:
    """The compiled programs of one checkpoint and one way of drafting, kept for the batches to come.

    Compilation is done ahead of the call, so that it never hides in a timing.
    """

    def __init__(self, checkpoint: Checkpoint, draft_cfg: DraftConfig) -> None:
        self.checkpoint = checkpoint
        self.draft_cfg = draft_cfg
        self.stats = Stats()
        self._table: recycle.Table | None = None
        if isinstance(draft_cfg, RecycleConfig) and draft_cfg.keeps_table:
            self._table = recycle.empty_table(1, checkpoint.config.vocab_size, draft_cfg)
        self._programs: dict[Any, Program] = {}
        self._has_run: set[Any] = set()

    def run(self, prompts: Sequence[Prompt], settings: Settings) -> Iterator[Generation]:
        """Generates batch by batch, in order. All prompts are checked before the first one runs.

        Raises:
          ValueError: one line with the values and a way out; see `make_request`.
        """
        if settings.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}.")
        size = max(1, min(settings.batch_size, len(prompts)))
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        requests = [self.request(batch, settings, size) for batch in batches]
        return self._run(batches, requests, settings)

    def _run(
        self,
        batches: list[Sequence[Prompt]],
        requests: list[tuple[jax.Array, Request, DecodeConfig]],
        settings: Settings,
    ) -> Iterator[Generation]:
        for batch, request in zip(batches, requests, strict=True):
            yield from self._generations(batch, settings, self._decode(*request))

    def run_batch(self, batch: Sequence[Prompt], settings: Settings) -> list[Generation]:
        """One batch of at most `settings.batch_size` prompts, with idle rows in the places left.

        What is new to this decoder is compiled and run once for two tokens before it is timed: a program's first run
        also loads it.
        """
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
        for row, prompt in enumerate(batch):  # the root, the newest token, is at `length`
            yield self._generation(prompt, draft, tokens[row, : lengths[row] + 1], calls[row], accepted[row])

    def request(
        self, batch: Sequence[Prompt], settings: Settings, rows: int | None = None
    ) -> tuple[jax.Array, Request, DecodeConfig]:
        """One batch as arrays, padded with idle rows to `rows`; see `make_request`, which also checks it."""
        return make_request(
            self.checkpoint.config,
            self.draft_cfg,
            [prompt.token_ids for prompt in batch],
            names=[str(prompt.id) for prompt in batch],
            rows=rows,
            max_new_tokens=settings.max_new_tokens,
            eos_token_ids=self.checkpoint.eos_token_ids,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seeds=[record_seed(settings.seed, prompt) for prompt in batch],
            mask_ema=settings.mask_ema,
            capacity=settings.capacity,
            prompt_slots=settings.prompt_slots,
        )

    def _decode(self, prompt_BT: jax.Array, request: Request, decode_cfg: DecodeConfig) -> decode_loop.DecodeState:
        prefill, run_steps = self.compile(prompt_BT, request, decode_cfg)
        params = self.checkpoint.params
        start = time.perf_counter()
        state = jax.block_until_ready(prefill(params, prompt_BT, request, table=self._table))
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
        loop_key = (_shapes(request), decode_cfg)  # the rest of the loop's state follows from these
        prefill_key = (prompt_BT.shape, *loop_key)
        static: dict[str, Any] = {"cfg": self.checkpoint.config, "draft_cfg": self.draft_cfg, "decode_cfg": decode_cfg}
        args = (self.checkpoint.params, prompt_BT, request)
        if prefill_key not in self._programs:
            self._build(prefill_key, decode_loop.prefill, args, static, table=self._table)
        if loop_key not in self._programs:
            state = jax.eval_shape(functools.partial(decode_loop.prefill, **static), *args, table=self._table)
            self._build(loop_key, decode_loop.run_steps, (args[0], request, state), static, donate="state")
        return self._programs[prefill_key], self._programs[loop_key]

    def _build(
        self, key: Any, function: Program, args: tuple[Any, ...], static: dict[str, Any], donate: str = "", **more: Any
    ) -> None:
        start = time.perf_counter()
        jitted = jax.jit(function, static_argnames=tuple(static), donate_argnames=donate or None)
        self._programs[key] = jitted.lower(*args, **static, **more).compile()
        self.stats.compile_seconds += time.perf_counter() - start

    def _generation(
        self, prompt: Prompt, draft: str, tokens: np.ndarray, calls: int, accepted_by_depth: np.ndarray
    ) -> Generation:
        token_ids = tokens[len(prompt.token_ids) :].tolist()
        generation = Generation(
            id=prompt.id,
            prompt_ids=prompt.token_ids,
            token_ids=token_ids,
            text=text.decode(self.checkpoint.tokenizer, token_ids),
            finish_reason="stop" if token_ids[-1] in self.checkpoint.eos_token_ids else "length",
            draft=draft,
            calls=int(calls),
            committed=len(token_ids) - 1,
            accepted_by_depth=accepted_by_depth.tolist(),
        )
        self.stats.calls += generation.calls
        self.stats.committed += generation.committed
        self.stats.new_tokens += len(token_ids)
        return generation


def _shapes(tree: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree))


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


def record_seed(run_seed: int, prompt: Prompt) -> int:
    """The seed of one record's noise: its own, else one drawn from the run's seed and its id, whatever its batch."""
    if prompt.seed is not None:
        return prompt.seed
    digest = hashlib.sha256(f"{run_seed}:{prompt.id}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
