"""Reading a chunk of prompts in pieces: every token comes, in order, and none of the padding's pieces."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp.drafting.successors import read_pieces


@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "num_used", "starts"),
    [
        (1, 256, 200, [0]),  # one row: 256 at a time
        (1, 300, 300, [0, 44]),  # the last piece begins earlier
        (1, 300, 256, [0]),
        (2, 300, 200, [0, 128]),
        (2, 300, 300, [0, 128, 172]),
        (8, 100, 70, [0, 36]),  # never below 64
        (8, 40, 40, [0]),
    ],
)
def test_pieces_follow_each_other_to_the_last_token_in_use(num_rows, num_tokens, num_used, starts):
    token_BU = np.arange(num_rows * num_tokens).reshape(num_rows, num_tokens)
    is_used_BU = (
        np.arange(num_tokens) < np.arange(num_used - num_rows + 1, num_used + 1)[:, None]
    )  # the last row's most
    chunk = SimpleNamespace(
        token_BU=jnp.asarray(token_BU),
        before_BU=jnp.asarray(token_BU - 1),
        is_used_BU=jnp.asarray(is_used_BU),
        logits=lambda first, size: first,
    )

    def keep(kept, token_BR, before_BR, is_used_BR, first):
        seen_B, calls, firsts = kept
        is_right = jnp.all(before_BR == token_BR - 1) & jnp.all(token_BR[:, 0] % num_tokens == first)
        place_BR = jnp.where(is_used_BR, token_BR, num_rows * num_tokens)
        seen_B = seen_B.at[place_BR.reshape(-1)].set(True, mode="drop")
        return seen_B, calls + is_right, firsts.at[calls].set(first)

    nothing = jnp.zeros(num_rows * num_tokens, bool), jnp.int32(0), jnp.full(8, -1)
    seen_B, calls, firsts = read_pieces(chunk, keep, nothing)
    assert firsts.tolist()[: int(calls)] == starts
    np.testing.assert_array_equal(np.asarray(seen_B).reshape(num_rows, num_tokens), is_used_BU)
