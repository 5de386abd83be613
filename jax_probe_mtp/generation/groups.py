"""Groups of devices that share no weights: each decodes its own rows, and none waits for another.

On a mesh of `data=D` groups each one has its own programs, its own batch and its own chunks of calls. One host thread looks
after all: it goes on with a group whose chunk has ended, and the others' devices are busy meanwhile. Only what the host itself
does for one, such as compiling, keeps the others' next chunks waiting. A mesh whose devices
belong to several processes stays one group: there all processes make the same calls.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.merged.costs import Costs
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.generation.answers import Generation, Item, Stats, Update
from jax_probe_mtp.generation.programs import CompileClock, Programs
from jax_probe_mtp.generation.row import WaitingPrompt
from jax_probe_mtp.generation.scheduler import ContinuousDecoder
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DATA, TENSOR
from jax_probe_mtp.model.mesh import mesh_of
from jax_probe_mtp.model.params import Params


class Groups:
    """The programs of one checkpoint and one way of drafting, for each group of devices that decodes by itself.

    Attributes:
      programs: of each group.
      num_shards: D, parts into which a batch's rows are split.
    """

    def __init__(self, checkpoint: Checkpoint, source: DraftSource, costs: Costs | None = None) -> None:
        """Compiles nothing yet; `costs` are those of `Programs`."""
        self._checkpoints, self._source = split(checkpoint), source
        self._clock = CompileClock()
        self.programs = [Programs(part, source, self._clock, costs) for part in self._checkpoints]
        self.num_shards = max(len(self.programs), self.programs[0].num_shards)

    def begin_shared(self, shared: Any = None) -> Any:
        """Gives what the rows begin to share: see `Programs.begin_shared`."""
        first = self.programs[0]
        return first.begin_shared(shared, self.num_shards)

    def stream(self, settings: Settings, *, stats: Stats, shared: Any, **options: Any) -> "AnyDecoder":
        """Makes what decodes one stream of prompts; `options` are those of `ContinuousDecoder`.

        Raises:
          ValueError: one line with the values and a way out.
        """
        if len(self.programs) == 1:
            return ContinuousDecoder(
                self._checkpoints[0], self._source, settings, programs=self.programs[0], stats=stats, shared=shared, **options
            )  # fmt: skip
        settings.check(self._checkpoints[0].config, self._source, num_shards=self.num_shards)
        own = dataclasses.replace(settings, batch_size=settings.batch_size // self.num_shards)
        parts = _parts(shared, self.num_shards, learns_shared=self._source.learns_shared)
        waiting: collections.deque[WaitingPrompt] = collections.deque()  # whoever has a free row first takes them
        decoders = [
            ContinuousDecoder(checkpoint, self._source, own, programs=programs, shared=part, waiting=waiting, **options)
            for checkpoint, programs, part in zip(self._checkpoints, self.programs, parts, strict=True)
        ]
        return SideBySide(decoders, self._clock, learns_shared=self._source.learns_shared, stats=stats)


def split(checkpoint: Checkpoint) -> list[Checkpoint]:
    """Gives the checkpoint of each group of devices."""
    return [dataclasses.replace(checkpoint, params=params) for params in split_params(checkpoint.params)]


def split_params(params: Params) -> list[Params]:
    """Gives the parameters of each group of devices: the arrays that lie there, nothing is copied.

    A group of one device has no mesh: its programs are those of one device.
    """
    mesh = mesh_of(params)
    if mesh is None or not _is_local(mesh):
        return [params]

    def part(devices: np.ndarray, leaf: jax.Array) -> jax.Array:
        on_device = {shard.device: shard.data for shard in leaf.addressable_shards}
        if len(devices) == 1:
            return on_device[devices[0]]
        assert isinstance(leaf.sharding, NamedSharding)
        sharding = NamedSharding(Mesh(devices[None], (DATA, TENSOR)), leaf.sharding.spec)
        arrays = [on_device[device] for device in devices]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)

    return [jax.tree.map(functools.partial(part, devices), params) for devices in mesh.devices]


def program_of(params: Params) -> tuple[str | None, int]:
    """Names the devices of one program as `--mesh` does, None for one device, and counts the groups that have such a one."""
    mesh = mesh_of(params)
    if mesh is None:
        return None, 1
    data, tensor = mesh.devices.shape
    if not _is_local(mesh):
        return f"{DATA}={data},{TENSOR}={tensor}", 1
    return f"{TENSOR}={tensor}" if tensor > 1 else None, data


def _is_local(mesh: Mesh) -> bool:
    return all(device.process_index == jax.process_index() for device in mesh.devices.flat)


class SideBySide:
    """The decoders of several groups behind one stream of prompts; used as a `ContinuousDecoder`.

    Attributes:
      stats: sums over all groups; their `seconds` are the longest's, their `host_seconds` the mean.
    """

    def __init__(
        self, decoders: Sequence[ContinuousDecoder], clock: CompileClock, *, learns_shared: bool, stats: Stats
    ) -> None:
        """Takes over the groups' decoders.

        Args:
          decoders: one of each group.
          clock: of all their programs.
          learns_shared: True where each group has what its rows share for itself.
          stats: where to count.
        """
        self._decoders, self._clock, self._learns_shared, self.stats = decoders, clock, learns_shared, stats

    @property
    def shared(self) -> Any:
        """What the rows share, on the host, the groups' one behind the other where each has its own."""
        if not self._learns_shared:  # on a device of the first group, it would be no other group's
            return jax.tree.map(np.asarray, self._decoders[0].shared)
        parts = [decoder.shared for decoder in self._decoders]
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)

    @shared.setter
    def shared(self, shared: Any) -> None:
        parts = _parts(shared, len(self._decoders), learns_shared=self._learns_shared)
        for decoder, part in zip(self._decoders, parts, strict=True):
            decoder.shared = part

    def run(
        self, items: Iterable[tuple[int, Item]], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Update]:
        """Decodes all prompts, as `ContinuousDecoder.run` does; each group takes the next prompt when it has a free row."""
        rest = iter(items)
        # The first ones are dealt out: a group that took as many as it has rows would leave none of a few to the next.
        dealt = list(itertools.islice(rest, sum(decoder.num_rows for decoder in self._decoders)))
        groups = range(len(self._decoders))
        before, compiled = dataclasses.replace(self.stats), self._clock.seconds
        for decoder in self._decoders:
            decoder.stats = Stats()
        going = {g: self._decoders[g].run(itertools.chain(dealt[g :: len(groups)], rest), should_stop) for g in groups}
        try:
            yield from self._take_turns(going, before, compiled)
        finally:
            for run in going.values():
                run.close()

    def _take_turns(self, going: dict[int, Generator[Update]], before: Stats, compiled: float) -> Iterator[Update]:
        while going:
            ready = [g for g in going if len(going) == 1 or self._decoders[g].is_ready()]
            if not ready:
                chunks = [self._decoders[g].chunk for g in going]
                concurrent.futures.wait(filter(None, chunks), return_when=concurrent.futures.FIRST_COMPLETED)
            for g in ready:
                update = next(going[g], None)
                self._count(before)
                self.stats.compile_seconds = before.compile_seconds + self._clock.seconds - compiled
                if update is None:
                    del going[g]
                else:
                    yield update

    def under_way(self) -> list[tuple[int, int]]:
        """Gives, of each record that is being decoded, its new tokens so far and the most that it may get."""
        return [record for decoder in self._decoders for record in decoder.under_way()]

    def refusal(self, prompt: Prompt, error: ValueError) -> Generation:
        """Says what comes of a prompt that cannot run."""
        return self._decoders[0].refusal(prompt, error)

    def _count(self, before: Stats) -> None:
        for field in dataclasses.fields(Stats):
            if field.name == "seconds_by_draft":
                continue
            parts = [getattr(decoder.stats, field.name) for decoder in self._decoders]
            joined = max(parts) if field.name == "seconds" else sum(parts)
            if field.name == "host_seconds":
                joined /= len(parts)
            setattr(self.stats, field.name, getattr(before, field.name) + joined)
        self.stats.seconds_by_draft = dict(before.seconds_by_draft)
        for decoder in self._decoders:
            for name, seconds in decoder.stats.seconds_by_draft.items():
                self.stats.count_draft(name, seconds)


def _parts(shared: Any, num_groups: int, *, learns_shared: bool) -> list[Any]:
    """Gives each group's part of what rows share, on the host: all of it where nothing is learned."""
    if not learns_shared:
        return [jax.tree.map(np.asarray, shared)] * num_groups
    return [jax.tree.map(lambda leaf, g=g: np.asarray(leaf[g : g + 1]), shared) for g in range(num_groups)]


AnyDecoder = ContinuousDecoder | SideBySide
