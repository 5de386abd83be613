"""What a call of each size of a draft costs: measured once for a device, model, version and batch, and kept."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass
class Costs:
    """Seconds of a call, by the batch and by what drafts.

    Attributes:
      depends_on: what they hold for beside the batch, as JSON has it: device, versions, model, dtype.
      seconds: a batch, such as "8 rows of 1024 slots" -> what drafts -> seconds a call.
      keepers: each is given the costs whenever one has been added.
    """

    depends_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    keepers: list[Callable[["Costs"], None]] = dataclasses.field(default_factory=list)

    def get(self, batch: str, name: str) -> float | None:
        """Gives the seconds of a call of such a batch; None where it has not been measured."""
        return self.seconds.get(batch, {}).get(name)

    def add(self, batch: str, name: str, seconds: float) -> None:
        """Takes what was measured."""
        self.seconds.setdefault(batch, {})[name] = seconds
        for keep in self.keepers:
            keep(self)

    def as_json(self) -> dict[str, Any]:
        """Gives all of it, for `take`."""
        return {"depends_on": dict(self.depends_on), "seconds": self.seconds}

    def take(self, kept: Any) -> bool:
        """Takes what `as_json` gave, once; False where it holds for something else, or is nothing of that kind."""
        try:
            if kept["depends_on"] != self.depends_on:
                return False
            seconds = {
                str(batch): {str(name): float(cost) for name, cost in by_name.items()}
                for batch, by_name in kept["seconds"].items()
            }
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return False
        if not all(0 < cost < math.inf for by_name in seconds.values() for cost in by_name.values()):
            return False
        for batch, by_name in seconds.items():
            self.seconds.setdefault(batch, {}).update(by_name)
        return True
