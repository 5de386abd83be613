"""One planted fault: a mistake of meaning in one place of the product's code, and the tests that ought to catch it."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A text that takes another's place.

    Attributes:
      name: tells it from the others.
      breaks: what is wrong with it, in a few words.
      file: where it is planted, from the root of the tree.
      old: what is there, once.
      new: what takes its place.
      tests: files that ought to catch it, as few as that takes.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def package(self) -> str:
        """Names the part of the product that it is in: a package of `jax_probe_mtp`, or `checkpoints_convert`."""
        first, second = self.file.split("/")[:2]
        return second if first == "jax_probe_mtp" else first

    def planted(self, tree: Path) -> str:
        """Gives the file's text with the fault in it.

        Raises:
          ValueError: if the old text is not there once: the code has moved on, and the fault must follow.
        """
        text = (tree / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"fault {self.name}: its old text is {count} times in {self.file}, not once; mend the fault."
            )
        return text.replace(self.old, self.new)

    def plant(self, tree: Path) -> None:
        """Plants it in a copy of the tree."""
        (tree / self.file).write_text(self.planted(tree), encoding="utf-8")
