"""The device's part of a tuning run: where it starts, a step of Adam, a look at the texts that are held back."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DATA, ModelConfig
from jax_probe_mtp.model.mesh import mesh_of
from jax_probe_mtp.model.params import Params
from jax_probe_mtp.model.stacked import read, stack_layers
from jax_probe_mtp.tuning import loss
from jax_probe_mtp.tuning.loss import HIT_SIZES, Texts
from jax_probe_mtp.tuning.masks import KEPT_BY, TuneSettings
from jax_probe_mtp.tuning.texts import Split, Text, as_arrays, drawn

STARTS = ("mean", "vocabulary", "zero")
EVERYWHERE = PartitionSpec()


class State(NamedTuple):
    """What a step changes."""

    masks_MD: jax.Array  # float32 [M, D]
    optimizer: Any  # Adam's, of the same shape


class Run:
    """The device's part of a tuning run.

    Attributes:
      start_name: one of `STARTS`.
    """

    def __init__(self, checkpoint: Checkpoint, used: Split, settings: TuneSettings) -> None:
        self._params = jax.jit(stack_layers)(checkpoint.params)
        self._config, self._settings, self._used = checkpoint.config, settings, used
        self._mesh = mesh_of(checkpoint.params)
        if self._mesh is not None and settings.micro_batch % self._mesh.shape[DATA]:
            raise ValueError(
                f"micro_batch {settings.micro_batch} cannot be split over data={self._mesh.shape[DATA]}; use a multiple of it."
            )
        self._deviation = jnp.std(checkpoint.params["embed"][: checkpoint.config.vocab_size].astype(jnp.float32))
        self.start_name = ""

    def start(self) -> State:
        """Gives the state before the first step: the best of three vectors on some of the texts, for every mask."""
        params, cfg, M = self._params, self._config, self._settings.num_masks
        num_tokens = np.zeros(self._params["embed"].shape[0], np.float32)
        for text in self._used.tuned_on:
            np.add.at(num_tokens, np.asarray(text.token_ids), 1)
        masks_SMD = self._place(_starts(params, cfg, num_tokens, M))
        few = self._used.tuned_on[: 2 * self._settings.micro_batch]
        best = int(np.argmax([self._hits(masks_MD, few)[0][HIT_SIZES.index(KEPT_BY)] for masks_MD in masks_SMD]))
        self.start_name = STARTS[best]
        return self._place(State(masks_SMD[best], _optimizer(self._settings).init(masks_SMD[best])))

    def step(self, state: State, number: int) -> tuple[State, jax.Array]:
        """Makes a step; gives the loss before it as well."""
        settings = self._settings
        numbers = drawn(len(self._used.tuned_on), number, settings.batch_size, settings.seed)
        texts = self._arrays([self._used.tuned_on[each] for each in numbers], settings.batch_size)
        return _step(self._params, state, texts, self._deviation, cfg=self._config, settings=settings)

    def hits(self, masks_MD: jax.Array) -> list[list[float]]:
        """Measures the hit rates of each mask on the texts that are held back."""
        return self._hits(masks_MD, self._used.held_back)

    def _hits(self, masks_MD: jax.Array, texts: Sequence[Text]) -> list[list[float]]:
        counts = [_count_hits(self._params, masks_MD, each, cfg=self._config) for each in self._batches(texts)]
        total_MH = np.sum(jax.device_get(counts), axis=0)
        return (total_MH[:, 1:] / np.maximum(total_MH[:, :1], 1)).round(4).tolist()

    def _batches(self, texts: Sequence[Text]) -> list[Texts]:
        size = self._settings.micro_batch
        return [self._arrays(texts[i : i + size], size) for i in range(0, len(texts), size)]

    def _arrays(self, texts: Sequence[Text], num_rows: int) -> Texts:
        """Lays texts out in A micro-batches, [A, B, ...]."""
        arrays = as_arrays(texts, num_rows, self._used.num_slots, self._used.num_places)
        size = self._settings.micro_batch
        in_turn = jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[1:]), arrays)
        return self._place(in_turn, PartitionSpec(None, DATA))

    def _place(self, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, spec))


def _optimizer(settings: TuneSettings) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps))


@functools.partial(jax.jit, static_argnames=("cfg", "num_masks"))
def _starts(params: Params, cfg: ModelConfig, num_tokens_V: jax.Array, num_masks: int) -> jax.Array:
    """Gives the vectors that a run may start from, float32 [starts, M, D]: the texts' mean, the table's mean and zero."""
    table_VD = params["embed"].astype(jnp.float32)
    mean_D = jnp.sum(num_tokens_V[:, None] * table_VD, axis=0) / jnp.sum(num_tokens_V)
    vocabulary_D = jnp.mean(table_VD[: cfg.vocab_size], axis=0)
    start_SD = jnp.stack([mean_D, vocabulary_D, jnp.zeros_like(mean_D)])
    return jnp.repeat(start_SD[:, None], num_masks, axis=1)


@functools.partial(jax.jit, static_argnames=("cfg", "settings"))
def _step(
    params: Params, state: State, texts: Texts, deviation: jax.Array, *, cfg: ModelConfig, settings: TuneSettings
) -> tuple[State, jax.Array]:
    """Adds up the gradients of the micro-batches and moves the masks; gives the loss before that as well.

    The loss is the mean of the masks' mean cross-entropies, float32, in nats.
    """
    masks_MD = state.masks_MD
    num_AM = jax.vmap(lambda part: jnp.sum(loss.targets(part, masks_MD.shape[0])[1], axis=(0, 1)))(texts)

    def add(sums: tuple[jax.Array, jax.Array], part: Texts) -> tuple[tuple[jax.Array, jax.Array], None]:
        cache = read(params, cfg, part.token_BT, part.length_B)

        def mean(masks_MD: jax.Array) -> jax.Array:
            return jnp.mean(loss.cross_entropy(params, cfg, masks_MD, part, cache) / jnp.sum(num_AM, axis=0))

        return jax.tree.map(jnp.add, sums, jax.value_and_grad(mean)(masks_MD)), None

    (value, gradient_MD), _ = jax.lax.scan(add, (jnp.zeros((), jnp.float32), jnp.zeros_like(masks_MD)), texts)
    moves_MD, optimizer = _optimizer(settings).update(gradient_MD, state.optimizer)
    return State(masks_MD + deviation * moves_MD, optimizer), value


@functools.partial(jax.jit, static_argnames="cfg")
def _count_hits(params: Params, masks_MD: jax.Array, texts: Texts, *, cfg: ModelConfig) -> jax.Array:
    only: Texts = jax.tree.map(lambda array: array[0], texts)
    return loss.count_hits(params, cfg, masks_MD, only, read(params, cfg, only.token_BT, only.length_B))
