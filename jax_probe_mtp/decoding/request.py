"""What varies from request to request, as arrays: lengths, limits and sampling of a batch's rows."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from jax_probe_mtp.decoding.penalties import Penalties
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.model.sampling import Sampling

NO_LIMIT = 2**31 - 1  # of accepted drafts


class Request(flax.struct.PyTreeNode, kw_only=True):
    """How to decode a batch of prompts, all arrays: other values do not recompile. `make_batch` checks and builds one.

    Attributes:
      prompt_length_B: int32 [B], at least 1.
      max_new_tokens_B: int32 [B], tokens to emit at most, the prefill's included.
      eos_E: int32 [E], ids that end a text.
      sampling: the rows' seeds, and how they draw. A greedy batch holds no arrays but the seeds, and its program no noise:
        a temperature put into it is another structure, hence another program.
      max_accept: int32 scalar, drafts that a call accepts at most; 0 is plain decoding by the very same program.
      penalties: what changes the logits first, and the rows' own ends in place of `eos_E`; None where no row asks for any,
        and the program then holds nothing of it.
    """

    prompt_length_B: jax.Array
    max_new_tokens_B: jax.Array
    eos_E: jax.Array
    sampling: Sampling
    max_accept: jax.Array
    penalties: Penalties | None = None

    @property
    def draw(self) -> Sampling | None:
        """Says how the rows draw; None where all are greedy."""
        return None if self.sampling.temperature_B is None else self.sampling


def idle_request(
    rows: int,
    eos_token_ids: Sequence[int],
    *,
    is_sampled: bool = False,
    penalized: int | None = None,
    max_accept: int | None = None,
) -> Request:
    """Makes a request of rows that have no prompt and emit nothing; `penalized` is V where their batch has penalties."""
    return make_request(
        lengths=[1] * rows,
        limits=[0] * rows,
        seeds=[0] * rows,
        draws=[(0.0, 0, 1.0)] * rows if is_sampled else None,
        eos_token_ids=eos_token_ids,
        max_accept=max_accept,
        penalties=None if penalized is None else make_penalties([Settings()] * rows, eos_token_ids, penalized),
    )


def make_request(
    *,
    lengths: Sequence[int],
    limits: Sequence[int],
    seeds: Sequence[int],
    draws: Sequence[tuple[float, int, float]] | None,
    eos_token_ids: Sequence[int],
    max_accept: int | None,
    penalties: Penalties | None = None,
) -> Request:
    """Lays values that were checked out as NumPy's arrays: the host makes many, and a program takes them.

    Args:
      lengths: tokens of each prompt.
      limits: new tokens of each row at most.
      seeds: of each row.
      draws: temperature, top-k and top-p of each row; None where all rows are greedy.
      eos_token_ids: ids that end a text.
      max_accept: drafts that a call accepts at most; None is no limit.
      penalties: of each row, of `make_penalties`; None where no row has any.
    """
    sampling = Sampling(seed_B=_array(seeds, np.uint32))
    if draws is not None:
        temperatures, top_ks, top_ps = zip(*draws, strict=True)
        sampling = sampling.replace(
            temperature_B=_array(temperatures, np.float32),
            top_k_B=_array(top_ks, np.int32),
            top_p_B=_array(top_ps, np.float32),
        )
    return Request(
        prompt_length_B=_array(lengths, np.int32),
        max_new_tokens_B=_array(limits, np.int32),
        eos_E=_array(list(eos_token_ids), np.int32),
        sampling=sampling,
        max_accept=_array(NO_LIMIT if max_accept is None else min(max_accept, NO_LIMIT), np.int32),
        penalties=penalties,
    )


def make_penalties(rows: Sequence[Settings], eos_token_ids: Sequence[int], vocab_size: int) -> Penalties:
    """Lays the penalties of each row out, likewise; V is `vocab_size`."""
    bias_BV: Any = np.zeros((len(rows), vocab_size), np.float32)
    is_end_BV: Any = np.zeros((len(rows), vocab_size), np.bool_)
    for row, settings in enumerate(rows):
        biases = settings.logit_bias or {}
        bias_BV[row, list(biases)] = list(biases.values())
        is_end_BV[row, list(settings.ends(eos_token_ids))] = True
    of_rows: Any = {
        "repetition_B": [settings.repetition_penalty for settings in rows],
        "frequency_B": [settings.frequency_penalty for settings in rows],
        "presence_B": [settings.presence_penalty for settings in rows],
    }
    return Penalties(
        **{name: _array(values, np.float32) for name, values in of_rows.items()},
        bias_BV=bias_BV,
        is_end_BV=is_end_BV,
        min_tokens_B=_array([settings.min_tokens for settings in rows], np.int32),
    )


def _array(values: object, dtype: type) -> Any:
    return np.asarray(values, dtype)


def join_requests(requests: Sequence[Request]) -> Request:
    """Puts the rows of several requests into one; what all rows share is the first one's."""
    if len(requests) == 1:
        return requests[0]
    shared = {name: getattr(requests[0], name) for name in ("eos_E", "max_accept")}
    rows = [request.replace(**dict.fromkeys(shared)) for request in requests]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows).replace(**shared)
