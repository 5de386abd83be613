"""The method's two trees: `Probe`, of a fixed shape, and `DynamicProbe`, whose shape follows from the probabilities.

Source: ESP (arXiv:2603.17942), Algorithm 1, Appendix D.
"""

import dataclasses
from collections.abc import Sequence

from jax_probe_mtp.drafting.mask_probe import MaskProbe
from jax_probe_mtp.drafting.mask_tokens import MAX_MASKS


@dataclasses.dataclass(frozen=True)
class Probe(MaskProbe):
    """A static tree: the K_i best of mask i, hung under the top-1 node of the depth above.

    Attributes:
      widths: K_1..K_k, one a mask; a single number stands for one mask.

    Source: ESP (arXiv:2603.17942), Appendix D.
    """

    widths: tuple[int, ...] = (14,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.widths, int | Sequence) or isinstance(self.widths, str):
            raise ValueError(f"widths must be numbers of candidates, such as (15, 4), got {self.widths!r}.")
        widths = (self.widths,) if isinstance(self.widths, int) else tuple(self.widths)
        object.__setattr__(self, "widths", widths)
        if not 1 <= len(widths) <= MAX_MASKS:
            raise ValueError(f"a tree has 1 to {MAX_MASKS} depths, got {list(widths)}; Plain() is plain decoding.")
        if any(type(width) is not int or width < 1 for width in widths):
            raise ValueError(
                f"each depth of a tree needs a whole number of candidates, at least 1, got {list(widths)}."
            )

    @property
    def num_masks(self) -> int:
        return len(self.widths)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        return self.widths


@dataclasses.dataclass(frozen=True)
class DynamicProbe(MaskProbe):
    """A tree whose shape is chosen anew each call, from the candidates' probabilities, within a budget of rows.

    Attributes:
      rows: block complexity, rows that a call may have, (k+1)(1 + nodes), Eq. (7).
      num_masks: k, mask tokens of each node.

    Source: ESP (arXiv:2603.17942), Algorithm 1.
    """

    rows: int = 60
    num_masks: int = dataclasses.field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "num_masks"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}.")
        if not 1 <= self.num_masks <= MAX_MASKS:
            raise ValueError(f"num_masks must be 1 to {MAX_MASKS} for a dynamic tree, got {self.num_masks}.")
        least = (self.num_masks + 1) * (self.num_masks + 1)
        if self.rows < least:
            raise ValueError(
                f"{self.rows} rows leave no room for {self.num_masks} nodes in depth with {self.num_masks} masks; raise "
                f"rows to {least} or more, or lower num_masks."
            )

    @property
    def noise_shapes_tree(self) -> bool:
        return True

    @property
    def num_nodes(self) -> int:
        return self.rows // (self.num_masks + 1)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        budget = self.num_nodes - 1
        return tuple(budget - i for i in range(self.num_masks))
