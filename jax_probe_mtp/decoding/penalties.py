"""What changes the model's logits before a token is chosen: penalties, a bias of each id, and ends that come too early.

They belong to the model's distribution, as temperature does, and depend on the text before a token. A node of the tree has
its own text, that of the row and of the nodes above it. So plain decoding and this method choose from the same numbers at the
same place, whatever the tree.

The order is vLLM's (`vllm/v1/sample/sampler.py`): bias and ends first, then the repetition penalty, then frequency and
presence; temperature and cuts come after. The repetition penalty is of Keskar et al., arXiv:1909.05858, section 4.1, the
other two are of OpenAI's API reference.
"""

import flax.struct
import jax
import jax.numpy as jnp


class Penalties(flax.struct.PyTreeNode, kw_only=True):
    """What each row asks for, V the vocabulary's size.

    Attributes:
      repetition_B: float32 [B]; logits of tokens in prompt or text are divided by it if above 0, else multiplied. 1 is none.
      frequency_B: float32 [B], taken from a token's logit for each time that it was emitted. 0 is none.
      presence_B: float32 [B], taken once from the logit of a token that was emitted. 0 is none.
      bias_BV: float32 [B, V], added to the logits.
      is_end_BV: bool [B, V], tokens that end the row's text.
      min_tokens_B: int32 [B], tokens that come before one that ends the text.
    """

    repetition_B: jax.Array
    frequency_B: jax.Array
    presence_B: jax.Array
    bias_BV: jax.Array
    is_end_BV: jax.Array
    min_tokens_B: jax.Array


class Used(flax.struct.PyTreeNode, kw_only=True):
    """What the texts hold.

    Attributes:
      is_prompt_BV: bool [B, V], tokens of the prompt.
      count_BV: int32 [B, V], how often each was emitted.
      num_new_B: int32 [B], tokens that were emitted.
    """

    is_prompt_BV: jax.Array
    count_BV: jax.Array
    num_new_B: jax.Array

    def followed_by(self, token_BD: jax.Array, num_B: jax.Array) -> "Used":
        """Adds the first `num_B` of `token_BD` [B, D] to the texts."""
        is_there_BD = jnp.arange(token_BD.shape[1])[None] < num_B[:, None]
        return self.replace(
            count_BV=self.count_BV.at[_row_11(token_BD), token_BD].add(is_there_BD.astype(jnp.int32)),
            num_new_B=self.num_new_B + num_B,
        )


def used(token_BT: jax.Array, prompt_length_B: jax.Array, length_B: jax.Array, vocab_size: int) -> Used:
    """Counts the tokens of texts.

    Args:
      token_BT: int32 [B, T], prompt and emitted tokens; what is behind them means nothing.
      prompt_length_B: int32 [B].
      length_B: int32 [B], tokens of prompt and text together.
      vocab_size: V; static.
    """
    place_1T = jnp.arange(token_BT.shape[1])[None]
    is_prompt_BT = place_1T < prompt_length_B[:, None]
    is_new_BT = ~is_prompt_BT & (place_1T < length_B[:, None])
    at, shape = (_row_11(token_BT), token_BT), (len(token_BT), vocab_size)
    return Used(
        is_prompt_BV=jnp.zeros(shape, jnp.bool_).at[at].max(is_prompt_BT),
        count_BV=jnp.zeros(shape, jnp.int32).at[at].add(is_new_BT.astype(jnp.int32)),
        num_new_B=length_B - prompt_length_B,
    )


def penalize(logits_BV: jax.Array, penalties: Penalties, text: Used) -> jax.Array:
    """Changes the logits of what comes after each text, float32 [B, V]."""
    is_early_B = text.num_new_B < penalties.min_tokens_B
    logits_BV = logits_BV + penalties.bias_BV
    logits_BV = jnp.where(penalties.is_end_BV & is_early_B[:, None], -jnp.inf, logits_BV)
    repetition_B1 = penalties.repetition_B[:, None]
    repeated_BV = jnp.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
    logits_BV = jnp.where(text.is_prompt_BV | (text.count_BV > 0), repeated_BV, logits_BV)
    logits_BV = logits_BV - penalties.frequency_B[:, None] * text.count_BV.astype(jnp.float32)
    return logits_BV - jnp.where(text.count_BV > 0, penalties.presence_B[:, None], 0)


def is_end(penalties: Penalties | None, eos_E: jax.Array, token_BP: jax.Array) -> jax.Array:
    """Says which tokens end their rows' texts, bool [B, P]: those of `eos_E` where the rows have none of their own."""
    if penalties is None:
        return jnp.any(token_BP[..., None] == eos_E[None, None], axis=-1)
    return jnp.take_along_axis(penalties.is_end_BV, token_BP, axis=1)


def _row_11(token_BT: jax.Array) -> jax.Array:
    return jnp.arange(len(token_BT))[:, None]
