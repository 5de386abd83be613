"""Reads all records of a job once, before anything runs: how long they are, and what they begin with alike."""

import contextlib
import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import jax

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.decoding.settings import SMALLEST_TEMPERATURE, Settings
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.prefixes import LEAST_SAVED, LEAST_SAVED_ON_CPU, SharedPrefixes
from jax_probe_mtp.model.config import ModelConfig

LEAST_RATIO = 4  # of the cache slots of long records to those of short ones
LEAST_BATCHES = 4  # of short records: fewer do not pay for programs of their own


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of a job's records.

    Attributes:
      capacity: cache slots of a row, for the longest record that the model can take; or those that the run names.
      prefixes: what prompts begin with alike.
      capacity_of_short: cache slots of a row for short records; None where all have one size.
    """

    capacity: int
    prefixes: SharedPrefixes
    capacity_of_short: int | None
    _power_of: "array[int]"  # of each record, the power of two that holds it

    @property
    def capacities(self) -> list[int]:
        """Lists the cache sizes that records are decoded with, one after the other."""
        return [self.capacity] if self.capacity_of_short is None else [self.capacity_of_short, self.capacity]

    def num_at(self, place: int) -> int:
        """Counts the records that are decoded with one of `capacities`."""
        return sum(self.place_of(index) == place for index in range(len(self._power_of)))

    def place_of(self, index: int) -> int:
        """Says which of `capacities` a record is decoded with."""
        return 0 if self.capacity_of_short is None else int(1 << self._power_of[index] > self.capacity_of_short)


def survey(records: Iterable[Record], cfg: ModelConfig, encode: Encoder, settings: Settings) -> Survey:
    """Reads all records.

    In the exact mode nothing is shared, and all records have one cache size: a token's bits may depend on the pieces that a
    prompt is read in, and on the size.

    Raises:
      ValueError: if one asks for several answers that would all be the same.
    """
    is_cpu = jax.default_backend() == "cpu"
    longest, powers = 1, array("B")
    prefixes = SharedPrefixes(LEAST_SAVED_ON_CPU if is_cpu else LEAST_SAVED)
    for record in records:
        check_samples(record, settings)
        size, token_ids = 1, list[int]()
        with contextlib.suppress(ValueError):  # it gets its own error when it is its turn
            prompt = encode(record)
            needed = len(prompt.token_ids) + prompt.of("max_new_tokens", settings)
            if needed <= cfg.context_length:
                size, token_ids = needed - 1, list(prompt.token_ids)
        longest = max(longest, size)
        powers.append(bucket(size).bit_length() - 1)
        prefixes.see([] if settings.is_exact else token_ids)
    capacity, short = settings.capacity, None
    if capacity is None:
        capacity = min(bucket(longest), cfg.context_length)
        can_split = not settings.is_exact and settings.prompt_slots is None
        if can_split and jax.default_backend() != "gpu":  # whose attention reads the used slots alone
            short = _capacity_of_short(powers, capacity, settings.batch_size)
    return Survey(capacity, prefixes, short, powers)


def check_samples(record: Record, settings: Settings) -> None:
    """Raises ValueError if a record asks for several answers that would all be the same."""
    temperature = settings.temperature if record.temperature is None else record.temperature
    top_k = settings.top_k if record.top_k is None else record.top_k
    if record.n > 1 and (temperature < SMALLEST_TEMPERATURE or top_k == 1):
        at = "with top_k 1" if top_k == 1 else f"at temperature {temperature:g}"
        raise ValueError(
            f"record {record.id!r:.60}: its n = {record.n} answers {at} would all be the same; give it another, or n 1."
        )


def _capacity_of_short(powers: Sequence[int], capacity: int, batch_size: int) -> int | None:
    """Chooses the size that saves most slots, over all records together."""
    counts, num_short = Counter(powers), 0
    best, most_saved = None, 0
    for power in sorted(counts):
        size, num_short = 1 << power, num_short + counts[power]
        if size * LEAST_RATIO <= capacity and num_short >= LEAST_BATCHES * batch_size:
            saved = num_short * (capacity - size)
            best, most_saved = (size, saved) if saved > most_saved else (best, most_saved)
    return best
