"""Prompts in, texts and counts out: batches, compiled programs and their timing around the decode loop."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_probe_mtp import decode_loop
from jax_probe_mtp import tokenizer as text
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import DecodeConfig, ProbeConfig
from jax_probe_mtp.request import Request, make_request

DEFAULT_PROBE = ProbeConfig(tree=(14,))  # the better tree of the two with 30 rows in docs/fidelity.md


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
    mask_ema: float = 0.1
    batch_size: int = 1
    capacity: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What came of one prompt.

    Attributes:
      id: the prompt's.
      prompt_ids: its token ids.
      token_ids: the new tokens, the end-of-text token included where it was generated.
      text: their text, without special tokens.
      finish_reason: "stop" at an end-of-text token, "length" at the limit.
      calls: decode calls, without the prefill.
      committed: tokens that those calls gave; the prefill's first token is not among them.
      accepted_by_depth: drafts accepted at depth 1, 2, ..., before the cut at the end of the text.
    """

    id: str | int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    calls: int
    committed: int
    accepted_by_depth: list[int]


@dataclasses.dataclass
class Stats:
    """Sums over a run: tau is `committed / calls`; `seconds` holds no compilation."""

    calls: int = 0
    committed: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
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

    def __init__(self, checkpoint: Checkpoint, probe: ProbeConfig) -> None:
        self.checkpoint = checkpoint
        self.probe = probe
        self.stats = Stats()
        self._programs: dict[Any, Callable[..., Any]] = {}

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
        return self._run(batches, requests)

    def _run(
        self, batches: list[Sequence[Prompt]], requests: list[tuple[jax.Array, Request, DecodeConfig]]
    ) -> Iterator[Generation]:
        for batch, request in zip(batches, requests, strict=True):
            state = self._decode(*request)
            tokens, lengths, calls, accepted = jax.device_get(
                (state.token_BT, state.length_B, state.calls_B, state.accepted_by_depth_BM)
            )
            for row, prompt in enumerate(batch):  # the root, the newest token, is at `length`
                yield self._generation(prompt, tokens[row, : lengths[row] + 1], calls[row], accepted[row])

    def request(
        self, batch: Sequence[Prompt], settings: Settings, rows: int | None = None
    ) -> tuple[jax.Array, Request, DecodeConfig]:
        """One batch as arrays, padded with idle rows to `rows`; see `make_request`, which also checks it."""
        return make_request(
            self.checkpoint.config,
            self.probe,
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
        )

    def _decode(self, prompt_BT: jax.Array, request: Request, decode_cfg: DecodeConfig) -> decode_loop.DecodeState:
        """Two programs, so that a new prompt length compiles a prefill and no second decode loop."""
        static: dict[str, Any] = {"cfg": self.checkpoint.config, "probe_cfg": self.probe, "decode_cfg": decode_cfg}
        params = self.checkpoint.params
        prefill = self._program(decode_loop.prefill, (params, prompt_BT, request), static)
        start = time.perf_counter()
        state = jax.block_until_ready(prefill(params, prompt_BT, request))
        self.stats.seconds += time.perf_counter() - start
        run_steps = self._program(decode_loop.run_steps, (params, request, state), static, donate="state")
        start = time.perf_counter()
        state = jax.block_until_ready(run_steps(params, request, state))
        self.stats.seconds += time.perf_counter() - start
        return state

    def _program(
        self, function: Callable[..., Any], args: tuple[Any, ...], static: dict[str, Any], donate: str | None = None
    ) -> Callable[..., Any]:
        """`function` compiled for these shapes, once."""
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(args[1:]))  # params never change
        key = (function, shapes, tuple(static.values()))
        if key not in self._programs:
            start = time.perf_counter()
            jitted = jax.jit(function, static_argnames=tuple(static), donate_argnames=donate)
            self._programs[key] = jitted.lower(*args, **static).compile()
            self.stats.compile_seconds += time.perf_counter() - start
        return self._programs[key]

    def _generation(self, prompt: Prompt, tokens: np.ndarray, calls: int, accepted_by_depth: np.ndarray) -> Generation:
        token_ids = tokens[len(prompt.token_ids) :].tolist()
        generation = Generation(
            id=prompt.id,
            prompt_ids=prompt.token_ids,
            token_ids=token_ids,
            text=text.decode(self.checkpoint.tokenizer, token_ids),
            finish_reason="stop" if token_ids[-1] in self.checkpoint.eos_token_ids else "length",
            calls=int(calls),
            committed=len(token_ids) - 1,
            accepted_by_depth=accepted_by_depth.tolist(),
        )
        self.stats.calls += generation.calls
        self.stats.committed += generation.committed
        self.stats.new_tokens += len(token_ids)
        return generation


def generate(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    *,
    probe: ProbeConfig | None = None,
    settings: Settings | None = None,
    use_chat_template: bool = True,
) -> list[Generation]:
    """Answers each prompt; the tokens are plain decoding's, in fewer calls.

    Args:
      checkpoint: from `checkpoints_convert.load_checkpoint`.
      prompts: user prompts, or plain texts to go on with when `use_chat_template` is False.
      probe: masks and tree; 1 mask and 14 candidates when left out. `ProbeConfig()` is plain decoding.
      settings: limits, sampling and batch size.
      use_chat_template: True puts each prompt into the checkpoint's chat template.

    Returns:
      One `Generation` a prompt, in order, their ids counted from 0.

    Raises:
      ValueError: one line with the values and a way out.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of texts, got one text; put it into a list.")
    decoder = Decoder(checkpoint, DEFAULT_PROBE if probe is None else probe)
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
