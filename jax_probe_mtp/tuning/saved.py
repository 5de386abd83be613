"""A tuning run on disk, so that it goes on after a kill."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jax_probe_mtp.errors import one_line
from jax_probe_mtp.tuning.masks import Look


class Saved:
    """A folder of Orbax checkpoints of one run, or nothing where no folder is given.

    Attributes:
      exists: whether there is a run to go on with.
      looks: its looks so far.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        """Opens the folder.

        Args:
          folder: where the run is saved; None saves nothing.
          about: what decides the run, as JSON has it.

        Raises:
          ValueError: if the folder holds another run, or one that cannot be read.
        """
        self._folder, self._about = folder, dict(about)
        self._manager: Any = None
        self.looks: list[Look] = []
        if folder is None:
            return
        import orbax.checkpoint as ocp  # slow to import, and masks are used without

        self._orbax = ocp.args
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        if self.exists:
            with self._readable():
                kept = self._manager.restore(
                    self._manager.latest_step(), args=self._orbax.Composite(run=self._orbax.JsonRestore())
                )["run"]
                there = {part: dict(kept["about"][part]) for part in self._about}
                self.looks = [Look(**look) for look in kept["looks"]]
                if not self.looks:
                    raise ValueError("it says nothing of the masks")
            self._check_same(there)

    def _check_same(self, there: dict[str, dict[str, Any]]) -> None:
        for part, values in self._about.items():
            for name, value in values.items():
                if there[part].get(name) != value:
                    self._manager.close()
                    raise ValueError(
                        f"{self._folder} holds a run of another {part}: {name} was {there[part].get(name)!r:.60}, and is "
                        f"{value!r:.60}; delete the folder to begin anew, or give what it was."
                    )

    @property
    def exists(self) -> bool:
        return self._manager is not None and self._manager.latest_step() is not None

    def load(self, like: Any) -> tuple[int, Any]:
        """Gives the steps made, and the arrays.

        Args:
          like: arrays of the shapes, dtypes and places that the saved ones should have.
        """
        assert self._manager is not None
        step = self._manager.latest_step()
        with self._readable():
            restored = self._manager.restore(
                step, args=self._orbax.Composite(arrays=self._orbax.StandardRestore(_leaves(like)))
            )
        arrays = [restored["arrays"][name] for name in _leaves(like)]
        return int(step or 0), jax.tree.unflatten(jax.tree.structure(like), arrays)

    def save(self, step: int, arrays: Any, looks: Sequence[Look]) -> None:
        """Saves the run after a step."""
        if self._manager is not None:
            kept = {"about": self._about, "looks": [dataclasses.asdict(look) for look in looks]}
            self._manager.save(
                step,
                args=self._orbax.Composite(
                    arrays=self._orbax.StandardSave(_leaves(arrays)), run=self._orbax.JsonSave(kept)
                ),
            )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a torn folder makes of Orbax
            self._manager.close()
            raise ValueError(
                f"{self._folder} cannot be read: {one_line(error):.120}; delete it to begin anew."
            ) from None

    def __enter__(self) -> "Saved":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._manager is not None:
            self._manager.close()


def _leaves(tree: Any) -> dict[str, Any]:
    """Names the arrays of a tree by their number: a name survives what Orbax makes of tuples."""
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(tree))}
