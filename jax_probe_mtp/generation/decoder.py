"""The compiled programs of one checkpoint and one way of drafting, kept for the prompts to come."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource, check_is_source
from jax_probe_mtp.generation.answers import Generation, Stats
from jax_probe_mtp.generation.groups import AnyDecoder, Groups
from jax_probe_mtp.generation.in_order import InOrder
from jax_probe_mtp.model.checkpoint import Checkpoint


class Decoder:
    """Decodes lists of prompts, one after the other; what was compiled or learned for one list serves the next.

    Attributes:
      checkpoint: the model.
      source: where drafts come from.
      stats: sums over what was run.
      groups: what was compiled, for each group of devices that decodes by itself.
    """

    def __init__(
        self, checkpoint: Checkpoint, source: DraftSource, groups: Groups | None = None, shared: Any = None
    ) -> None:
        """Compiles nothing yet.

        Args:
          checkpoint: the model.
          source: where drafts come from.
          groups: another decoder's for the same two, to share them.
          shared: what the source's rows share, such as tuned masks; what it begins with when None.
        """
        if not isinstance(checkpoint, Checkpoint):
            raise ValueError(f"checkpoint must be what load_checkpoint gives, got {checkpoint!r:.80}.")
        check_is_source(source)
        self.checkpoint = checkpoint
        self.source = source
        self.stats = Stats()
        self.groups = Groups(checkpoint, source) if groups is None else groups
        self._shared = self.groups.begin_shared(shared)

    def run(self, prompts: Sequence[Prompt], settings: Settings) -> Iterator[Generation]:
        """Generates, in order, with all rows kept busy. All prompts are checked before the first one runs.

        Raises:
          ValueError: one line with the values and a way out; see `make_batch`.
        """
        return self._run(self.stream(prompts, settings), prompts)

    def _run(self, stream: AnyDecoder, prompts: Sequence[Prompt]) -> Iterator[Generation]:
        in_order = InOrder()
        for update in stream.run(in_order.watch(enumerate(prompts))):
            yield from (generation for _, generation in in_order.add(update.finished))
        self._shared = stream.shared  # not before: what a run that fails gave its calls is gone

    def stream(self, prompts: Sequence[Prompt], settings: Settings, *, streams_text: bool = False) -> AnyDecoder:
        """Makes what decodes these prompts, with no more rows than prompts; each is checked."""
        capacity = settings.capacity or 1
        eos = self.checkpoint.eos_token_ids
        for prompt in prompts:
            batch = make_batch(self.checkpoint.config, self.source, [prompt], settings, eos_token_ids=eos)
            capacity = max(capacity, batch.config.capacity)
            if self.checkpoint.tokenizer is None and prompt.of("stop", settings):
                raise ValueError(
                    f"prompt {prompt.id} has stop texts, but the checkpoint has no tokenizer; leave them out."
                )
        shards = self.groups.num_shards
        rows = max(1, -(-len(prompts) // shards)) * shards
        if settings.batch_size > rows:
            settings = dataclasses.replace(settings, batch_size=rows)
        return self.groups.stream(
            settings,
            stats=self.stats,
            shared=self._shared,
            capacity=capacity,
            is_sampled=any(prompt.of("temperature", settings) > 0 for prompt in prompts),
            is_penalized=any(prompt.own_settings(settings).is_penalized for prompt in prompts),
            streams_text=streams_text,
        )

    def stream_text(self, prompt: Prompt, settings: Settings) -> Iterator[str]:
        """Gives one answer in pieces, whole characters only, as its calls give them. The prompt is checked at once."""
        return self._stream_text(self.stream([prompt], settings, streams_text=True), prompt)

    def _stream_text(self, stream: AnyDecoder, prompt: Prompt) -> Iterator[str]:
        for update in stream.run([(0, prompt)]):
            yield from (text for _, text in update.new_text)
        self._shared = stream.shared
