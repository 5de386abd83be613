"""Times decode calls: the decode loop itself, on a state as a prefill leaves it, for any draft and any weights."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.decoding.request import Request, make_request
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds a call, one number a repeat, each the mean over the calls of a loop; and what compiling took.

    Attributes:
      ms: of each repeat.
      compile_seconds: tracing, lowering and compiling.
      temp_bytes: memory that the program needs besides its arguments and results; None where the backend does not say.
    """

    ms: tuple[float, ...]
    compile_seconds: float
    temp_bytes: int | None

    @property
    def median_ms(self) -> float:
        """Gives the middle of the repeats."""
        return float(np.median(self.ms))


def filled_state(
    params: Params,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    *,
    batch_size: int,
    in_use: int,
    new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> tuple[Request, DecodeState]:
    """Makes a request and the state of its rows after `in_use` tokens, made of noise, without running a prefill.

    The keys and values are random, not zeros: a device may multiply zeros faster. There is no end-of-text token, so each
    row goes on to its `new_tokens`.

    Args:
      params: the model's parameters.
      cfg: the model.
      source: where drafts come from.
      decode_cfg: capacity; holds `in_use + new_tokens` tokens.
      batch_size: B.
      in_use: committed slots of each row.
      new_tokens: tokens that each row is to emit in decode calls.
      temperature: of all rows; 0 is greedy.
      top_p: of all rows.
    """
    B = batch_size
    if in_use < 1 or new_tokens < 1 or in_use + new_tokens > decode_cfg.capacity:
        raise ValueError(
            f"{in_use} tokens in use and {new_tokens} new ones do not fit a capacity of {decode_cfg.capacity}; raise it, or "
            f"lower one of them to 1 or more."
        )
    request = make_request(
        lengths=[in_use] * B,
        limits=[new_tokens + 1] * B,  # the root counts: it is the prefill's token
        seeds=list(range(B)),
        draws=[(temperature, 0, top_p)] * B if temperature > 0 else None,
        eos_token_ids=[],
        max_accept=None,
    )
    shared = source.init_shared(cfg)  # also where the caller brings masks: theirs would take as long
    fill = functools.partial(prefill, cfg=cfg, source=source, decode_cfg=decode_cfg, shared=shared)
    shapes = jax.eval_shape(fill, params, jax.ShapeDtypeStruct((B, 1), jnp.int32), request)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.replace(cache=None, source=None))
    noise = jax.jit(lambda key: jax.random.normal(key, shapes.cache.k[0].shape, shapes.cache.k[0].dtype))
    keys = jax.random.split(jax.random.key(1), 2 * cfg.num_layers)
    slots = tuple(noise(key) for key in keys)
    cache = shapes.cache.replace(k=slots[: cfg.num_layers], v=slots[cfg.num_layers :])
    # What a source keeps starts at 0: masks of zeros, and a first tree of one token, are as good as any for timing.
    kept = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.source)
    token_BT = jax.random.randint(jax.random.key(2), shapes.token_BT.shape, 0, cfg.vocab_size, jnp.int32)
    return request, state.replace(token_BT=token_BT, length_B=jnp.full(B, in_use, jnp.int32), cache=cache, source=kept)


def time_loop(
    loop: Callable[..., DecodeState],
    params: Params,
    request: Request,
    state: DecodeState,
    *,
    repeats: int,
) -> Timing:
    """Times `loop(params, request, state)`, which steps a state to its end and counts its calls, after an untimed run.

    The state is donated and used again: each repeat begins at the same length, over what the last one wrote.
    """
    return time_side_by_side([(loop, params, request, state)], repeats=repeats)


def time_side_by_side(
    parts: Sequence[tuple[Callable[..., DecodeState], Params, Request, DecodeState]], *, repeats: int
) -> Timing:
    """Times loops as `time_loop` does, all at once, each on its own devices: from their start to the end of the last."""
    start = time.perf_counter()
    programs = [jax.jit(loop, donate_argnums=2).lower(*args).compile() for loop, *args in parts]
    compile_seconds = time.perf_counter() - start
    memory = programs[0].memory_analysis()
    states = [state for *_, state in parts]
    length_B = np.asarray(states[0].length_B)
    begun = {
        "length_B": length_B,
        "is_done_B": np.zeros(length_B.shape, np.bool_),
        "calls_B": np.zeros(length_B.shape, np.int32),
    }
    ms = []

    def run(program: jax.stages.Compiled, params: Params, request: Request, state: DecodeState) -> DecodeState:
        return jax.block_until_ready(program(params, request, state))

    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:  # a GPU's loop comes back only when it ends
        for _ in range(repeats + 1):
            states = [state.replace(**_beside(state, begun)) for state in states]
            jax.block_until_ready(states)
            params, requests = [part[1] for part in parts], [part[2] for part in parts]
            start = time.perf_counter()
            states = list(threads.map(run, programs, params, requests, states))
            seconds = time.perf_counter() - start
            ms.append(1000 * seconds / max(int(np.max(state.calls_B)) for state in states))
    return Timing(
        ms=tuple(ms[1:]),
        compile_seconds=compile_seconds,
        temp_bytes=None if memory is None else int(memory.temp_size_in_bytes),
    )


def _beside(state: DecodeState, begun: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Lays arrays where the state's own of these names lie."""
    return {name: jax.device_put(array, getattr(state, name).sharding) for name, array in begun.items()}


def time_step(
    params: Params,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    *,
    batch_size: int,
    in_use: int,
    calls: int,
    repeats: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Timing:
    """Times whole decode calls: draft, tree, masks, forward, verify, commit, learn, in the loop that `decode` runs.

    Takes what `filled_state` takes; `calls` is about how many a repeat makes, fewer by the drafts that are accepted.
    """
    request, state = filled_state(
        params,
        cfg,
        source,
        decode_cfg,
        batch_size=batch_size,
        in_use=in_use,
        new_tokens=calls,
        temperature=temperature,
        top_p=top_p,
    )
    loop = functools.partial(run_steps, cfg=cfg, source=source, decode_cfg=decode_cfg)
    return time_loop(loop, params, request, state, repeats=repeats)
