"""Decodes inside a `jax.jit` of one's own: scores samples on the device, and ends rows by a rule of one's own.

1. `best_sample` draws several answers to one prompt and picks the one that the model likes best, in one compiled program:
   `decode` is a pure function, and what it gives can be used before anything leaves the device.
2. `decode_within` is a loop of one's own over decode calls: `prefill`, then `step_and_call` in a `lax.while_loop`. It counts
   how many drafts each call accepted, and ends a row when its tokens have cost more nats than a budget allows. What stays is
   the beginning of plain decoding's text, and the same for every draft source.

    python own_jit_loop.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse
import functools

import jax
import jax.numpy as jnp

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import DraftSource, ModelConfig, Prompt, Settings, decode, make_batch
from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.decoding.state import DecodeState, num_emitted
from jax_probe_mtp.decoding.step import step_and_call
from jax_probe_mtp.drafting import parse_draft
from jax_probe_mtp.generation.tokenizer import encode


def emitted(token_BT: jax.Array, prompt_length_B: jax.Array, num_emitted_B: jax.Array) -> jax.Array:
    """Marks the places of new tokens, bool [B, T]."""
    place_1T = jnp.arange(token_BT.shape[1])[None]
    return (place_1T >= prompt_length_B[:, None]) & (place_1T < (prompt_length_B + num_emitted_B)[:, None])


@functools.partial(jax.jit, static_argnames=("cfg", "source"))
def best_sample(
    params: dict, batch: Batch, cfg: ModelConfig, source: DraftSource
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decodes all rows and picks one.

    Returns:
      The row whose tokens are likeliest on average, int32; those averages in nats, float32 [B]; and the drafts that each row
      accepted, int32 [B].
    """
    result = decode(params, batch, cfg, source)
    assert result.logprob_BT is not None, "make the batch with Settings(logprobs=True)"
    is_new_BT = emitted(result.token_BT, batch.request.prompt_length_B, result.num_emitted_B)
    logprob_BT = jnp.where(is_new_BT, result.logprob_BT, 0)
    mean_B = jnp.sum(logprob_BT, axis=1) / result.num_emitted_B
    return jnp.argmax(mean_B), mean_B, jnp.sum(result.accepted_by_depth_BX, axis=1)


@functools.partial(jax.jit, static_argnames=("cfg", "source"))
def decode_within(
    params: dict, batch: Batch, cfg: ModelConfig, source: DraftSource, budget: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decodes until each row has ended or its tokens have cost more than `budget` nats, -log p summed.

    Returns:
      Prompt and text, int32 [B, S + 1]; new tokens of each row, the one that broke the budget included, int32 [B]; and how
      many calls of all rows accepted 0, 1, ... drafts, int32 [depth + 1].
    """
    request = batch.request

    def cost_BT(state: DecodeState) -> jax.Array:
        assert state.logprob_BT is not None, "make the batch with Settings(logprobs=True)"
        is_new_BT = emitted(state.token_BT, request.prompt_length_B, num_emitted(state, request))
        return jnp.cumsum(jnp.where(is_new_BT, -state.logprob_BT, 0), axis=1)

    def go_on(carried: tuple[DecodeState, jax.Array]) -> tuple[DecodeState, jax.Array]:
        before, calls_A = carried
        state, call = step_and_call(params, request, before, cfg, source, batch.config)
        is_counted_B = ~before.is_done_B & (num_emitted(before, request) > 0)  # a row's first call drafts nothing
        calls_A = calls_A.at[call.accepted.num_accepted_B].add(is_counted_B.astype(jnp.int32))
        return state.replace(is_done_B=state.is_done_B | (cost_BT(state)[:, -1] > budget)), calls_A

    state = prefill(params, batch.prompt_BT, request, cfg, source, batch.config)
    calls_A = jnp.zeros(source.max_depth + 1, jnp.int32)
    state, calls_A = jax.lax.while_loop(lambda carried: ~jnp.all(carried[0].is_done_B), go_on, (state, calls_A))

    # A call may give tokens behind the one that broke the budget.
    is_new_BT = emitted(state.token_BT, request.prompt_length_B, num_emitted(state, request))
    num_within_B = jnp.sum(is_new_BT & (cost_BT(state) <= budget), axis=1)
    return state.token_BT, jnp.minimum(num_within_B + 1, num_emitted(state, request)), calls_A


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="Name a colour, and say why you like it.")
    parser.add_argument("--draft", default="probe:14")
    parser.add_argument("--budget", type=float, default=40.0, help="nats")
    args = parser.parse_args(argv)
    checkpoint, source = load_checkpoint(args.model, dtype="float32"), parse_draft(args.draft)
    cfg, eos = checkpoint.config, checkpoint.eos_token_ids
    prompt_ids = encode(checkpoint.tokenizer, args.prompt, use_chat_template=True)

    samples = [Prompt(token_ids=prompt_ids, sample=number) for number in range(4)]
    drawn = Settings(max_new_tokens=48, temperature=0.8, logprobs=True)
    batch = make_batch(cfg, source, samples, drawn, eos_token_ids=eos)
    best, mean_B, accepted_B = best_sample(checkpoint.params, batch, cfg, source)
    print(f"mean log-probabilities {[round(float(mean), 3) for mean in mean_B]}: sample {best} is the likeliest")
    print(f"accepted drafts {accepted_B.tolist()}")

    greedy = Settings(max_new_tokens=48, logprobs=True)
    batch = make_batch(cfg, source, [prompt_ids], greedy, eos_token_ids=eos)
    token_BT, num_new_B, calls_A = decode_within(checkpoint.params, batch, cfg, source, args.budget)
    new_ids = token_BT[0, len(prompt_ids) :][: num_new_B[0]].tolist()
    print(f"{num_new_B[0]} tokens for {args.budget:g} nats: {checkpoint.tokenizer.decode(new_ids)!r}")
    print("calls that accepted 0, 1, ... drafts:", calls_A.tolist())


if __name__ == "__main__":
    main()
