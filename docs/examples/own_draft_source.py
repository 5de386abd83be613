"""A draft source of one's own with a state and a tree: what followed the newest token the last time, and the first time.

docs/extending.md begins with a source that keeps nothing. This one keeps two places of every token of the vocabulary, reads
the prompt in `start` and its own output in `learn`, and proposes two chains under one root. `kinds` lets `decode` count which
chain the accepted drafts came from. Whatever it proposes, the text is plain decoding's.

    python own_draft_source.py --model HuggingFaceTB/SmolLM2-135M-Instruct
    jax-probe-mtp generate --model HuggingFaceTB/SmolLM2-135M-Instruct --draft own_draft_source:Echo@length=4 --stats \
      --prompt "Write a short song about rain with a chorus that comes twice."

The second command finds the class in this file when it is run in this folder, or with this folder in PYTHONPATH.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import DraftSource, ModelConfig, Settings, decode, generate, make_batch
from jax_probe_mtp.drafting import NO_PARENT, NO_TOKEN, Candidates, SourceState, check_source
from jax_probe_mtp.drafting.shown import FinishedCall, Model, Prompts, Text

NEVER = -1


@dataclasses.dataclass(frozen=True)
class Echo(DraftSource):
    """Drafts what followed the newest token before: the last time, and the first time where that is another place.

    The state's `rows` are two arrays int32 [B, V]: the last and the first place of each token, `NEVER` without one.

    Attributes:
      length: tokens of each chain.
    """

    length: int = 4

    @property
    def num_candidates(self) -> int:
        return 2 * self.length

    @property
    def max_depth(self) -> int:
        return self.length

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("last time", "first time")

    def check(self, cfg: ModelConfig, prompt_length: int | None = None) -> None:
        if not 1 <= self.length <= 16:
            raise ValueError(f"length must be 1 to 16, got {self.length}.")

    def start(self, model: Model, prompts: Prompts, shared: object) -> SourceState:
        B, T = prompts.token_BT.shape
        nowhere_BV = jnp.full((B, model.cfg.vocab_size), NEVER)
        place_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        is_known_BT = place_BT < prompts.length_B[:, None] - 1  # the last token is the root, which nothing follows yet
        return SourceState(rows=remember((nowhere_BV, nowhere_BV), prompts.token_BT, place_BT, is_known_BT))

    def propose(self, state: SourceState, text: Text) -> Candidates:
        last_B, first_B = (jnp.take_along_axis(of_BV, text.root_B[:, None], axis=1)[:, 0] for of_BV in state.rows)
        first_B = jnp.where(first_B == last_B, NEVER, first_B)
        start_BP = jnp.repeat(jnp.stack([last_B, first_B], axis=1), self.length, axis=1)
        step_P = np.tile(np.arange(1, self.length + 1), 2)
        place_BP = start_BP + step_P[None]
        is_text_BP = (start_BP != NEVER) & (place_BP <= text.root_position_B[:, None])
        token_BP = jnp.take_along_axis(text.token_BT, jnp.where(is_text_BP, place_BP, 0), axis=1)
        token_BP = jnp.where(is_text_BP, token_BP, NO_TOKEN)
        parent_P = np.where(step_P == 1, NO_PARENT, np.arange(self.num_candidates) - 1)
        kind_P = np.repeat([0, 1], self.length)
        return Candidates(
            token_BP=token_BP,
            parent_BP=jnp.broadcast_to(jnp.asarray(parent_P, jnp.int32), token_BP.shape),
            depth_BP=jnp.broadcast_to(jnp.asarray(step_P, jnp.int32), token_BP.shape),
            score_BP=jnp.where(is_text_BP, -0.5 * step_P, -jnp.inf).astype(jnp.float32),
            kind_BP=jnp.broadcast_to(jnp.asarray(kind_P, jnp.int32), token_BP.shape),
        )

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        token_BP = jnp.concatenate([call.tree.token_BN[:, :1], call.new_token_BP[:, :-1]], axis=1)  # the old root first
        step_1P = jnp.arange(token_BP.shape[1])[None]
        place_BP = call.root_position_B[:, None] - call.num_new_B[:, None] + step_1P
        is_new_BP = step_1P < call.num_new_B[:, None]  # the newest token is left: it is the next root
        return state.replace(rows=remember(state.rows, token_BP, place_BP, is_new_BP))


def remember(
    rows: tuple[jax.Array, jax.Array], token_BX: jax.Array, place_BX: jax.Array, is_used_BX: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds tokens at later places; a maximum does not depend on the order in which a device writes."""
    last_BV, first_BV = rows
    V = last_BV.shape[1]
    at = jnp.arange(len(last_BV))[:, None], jnp.where(is_used_BX, token_BX, V)  # V is outside: dropped
    new_BV = jnp.full_like(last_BV, NEVER).at[at].max(place_BX, mode="drop")
    earliest_BV = jnp.full_like(first_BV, jnp.iinfo(jnp.int32).max).at[at].min(place_BX, mode="drop")
    first_BV = jnp.where((first_BV == NEVER) & (new_BV != NEVER), earliest_BV, first_BV)
    return jnp.maximum(last_BV, new_BV), first_BV


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="Write a short song about rain with a chorus that comes twice.")
    parser.add_argument("--length", type=int, default=4)
    args = parser.parse_args(argv)
    checkpoint, source = load_checkpoint(args.model, dtype="float32"), Echo(args.length)
    check_source(source, checkpoint.config)  # says in one line where a source breaks the contract

    settings = Settings(max_new_tokens=64)
    [plain] = generate(checkpoint, [args.prompt], draft="plain", settings=settings)
    [echo] = generate(checkpoint, [args.prompt], draft=source, settings=settings)
    print(f"{echo.draft}: {echo.committed} tokens in {echo.calls} calls, plain decoding takes {plain.calls}")
    print("the same tokens" if echo.token_ids == plain.token_ids else "other tokens: a bug")
    print("accepted by depth:", echo.accepted_by_depth)

    batch = make_batch(checkpoint.config, source, [echo.prompt_ids], settings, eos_token_ids=checkpoint.eos_token_ids)
    result = jax.jit(decode, static_argnames=("cfg", "source"))(checkpoint.params, batch, checkpoint.config, source)
    print("accepted by kind:", dict(zip(source.kinds, result.accepted_by_kind_BZ[0].tolist(), strict=True)))


if __name__ == "__main__":
    main()
