"""A module of draft sources as a user may write one: one that works, and one for each way to break the contract."""

NAME = "my_module"
TEXT = '''
import dataclasses

import jax.numpy as jnp

from jax_probe_mtp.drafting import DraftSource, SourceState, chain


@dataclasses.dataclass(frozen=True)
class MySource(DraftSource):
    """Drafts the newest token again, `size` times."""

    size: int = 2

    @property
    def num_candidates(self):
        return self.size

    def propose(self, state, text):
        return chain(jnp.repeat(text.root_B[:, None], self.size, axis=1))


class LateParent(MySource):
    def propose(self, state, text):
        candidates = super().propose(state, text)
        return candidates.replace(parent_BP=candidates.parent_BP[:, ::-1], depth_BP=candidates.depth_BP[:, ::-1])


class HighScore(MySource):
    def propose(self, state, text):
        candidates = super().propose(state, text)
        return candidates.replace(score_BP=jnp.arange(-float(self.size), 0) + 0 * candidates.score_BP)


class NoRows(MySource):
    def start(self, model, prompts, shared):
        return SourceState(rows=jnp.zeros(7))


@dataclasses.dataclass(frozen=True)
class NoHash(MySource):
    sizes: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class NoPropose(DraftSource):
    pass


@dataclasses.dataclass(frozen=True)
class Picky(MySource):
    def __post_init__(self):
        raise RuntimeError("not\\ntoday")


class NotFrozen(DraftSource):
    num_candidates = 1

    def propose(self, state, text):
        return chain(text.root_B[:, None])


class Other:
    pass
'''
