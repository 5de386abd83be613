"""Reads the text of a compiled program: what its loops read, and what they copy, convert or gather beyond that.

The text is XLA's, of `jax.stages.Compiled.as_text()`: computations of one instruction a line, in which a fusion stands for the
computation that it calls. An argument's name in the program (`params['layers'][0]['qkv']`) is in its metadata.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator

BITS = {"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
BITS |= {"s64": 64, "u64": 64, "f64": 64}
# What gives another form of the same numbers, what only names them, and what asks other devices for them.
MOVES = {"copy", "transpose", "convert", "reshape", "slice", "concatenate", "pad", "reverse", "broadcast"}
MOVES |= {"bitcast-convert", "copy-start", "copy-done", "slice-start", "slice-done"}
NAMES = {"bitcast", "get-tuple-element", "tuple", "parameter", "constant", "optimization-barrier", "after-all"}
GATHERS = {"all-gather", "all-gather-start", "all-to-all", "collective-permute", "collective-permute-start"}
_SHAPE = re.compile(r"\b(" + "|".join(BITS) + r")\[([\d,]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ((?:\([^=]*?\)|\S+)) ([\w\-]+)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|condition|body|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: as XLA writes it, such as bf16.
      shape: its sizes.
      layout: what stands behind it in braces; a memory space other than the main one is S(1) and up.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Counts them, padding not included."""
        return BITS[self.dtype] // 8 * math.prod(self.shape)

    @property
    def is_in_main_memory(self) -> bool:
        """Says whether it lies there, not in a scratchpad of the chip."""
        return "S(" not in self.layout

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its name, what it gives, what it does, the names of what it takes, and the rest of the line."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str

    def called(self, *how: str) -> list[str]:
        """Names the computations that it calls as its `body`, say."""
        return [
            name for key, names in _CALLED.findall(self.rest) if key in how for name in re.findall(r"[\w.\-]+", names)
        ]

    @property
    def source(self) -> str:
        """Gives the name of the JAX operation that it comes from, "" where there is none."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1].replace("\\'", "'") if match else ""

    def attribute(self, name: str) -> str:
        """Gives what stands behind `name=`, up to the next comma."""
        return re.search(rf"\b{name}=([^,]*)", self.rest)[1]  # type: ignore[index]

    @property
    def cycles(self) -> int:
        """Gives the cycles that a TPU's compiler expects it to take, 0 where the text does not say."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match else 0

    @property
    def trips(self) -> int:
        """Counts how often a while loop runs, 1 where the text does not say."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.rest)
        return int(match[1]) if match else 1


@dataclasses.dataclass(frozen=True)
class Move:
    """An instruction that gives another form of numbers that are there already.

    Attributes:
      kind: "weights", "cache", "gathered", or "other" for what was computed in the loop.
      what: the argument that it comes from, or the JAX operation.
      result: its largest array, as text.
      opcode: copy, convert, all-gather; of a fusion the largest move in it.
      bytes: written by it to main memory in one pass through the loop.
    """

    kind: str
    what: str
    result: str
    opcode: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Loop:
    """One pass through a loop of the program.

    Attributes:
      name: of its body.
      reads: bytes of each kind of argument, "weights" and "cache", that it carries.
      moves: largest first.
      writes: bytes that all else writes to main memory.
      cycles: what a TPU's compiler expects it to take; 0 of other devices.
    """

    name: str
    reads: dict[str, int]
    moves: tuple[Move, ...]
    writes: int
    cycles: int

    def moved(self, kind: str) -> int:
        """Sums up the bytes of moves of one kind."""
        return sum(move.bytes for move in self.moves if move.kind == kind)


class Program:
    """A compiled program.

    Args:
      text: of `as_text()`.
      cache_sizes: numbers of elements of arrays that are taken for the cache's, which a program may have made itself.

    Attributes:
      computations: name -> its instructions.
      entry: name of the one that runs first.

    Raises:
      ValueError: if the text is of another kind.
    """

    def __init__(self, text: str, cache_sizes: Collection[int] = ()) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.cache_sizes = "", frozenset(cache_sizes)
        lines: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _HEAD.match(line):
                lines = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif match := _LINE.match(re.sub(r"/\*.*?\*/", "", line)):
                name, result, opcode, rest = match.groups()
                taken, rest = _operands(rest)
                arrays = tuple(
                    Array(dtype, tuple(map(int, filter(None, sizes.split(",")))), layout)
                    for dtype, sizes, layout in _SHAPE.findall(result)
                )
                lines[name] = Instruction(name, arrays, opcode, taken, rest)
        if not self.entry:
            raise ValueError("this is no text of a compiled program: no computation of it is marked ENTRY.")

    def loops(self) -> list[Loop]:
        """Reads the loops of the entry computation, the one that reads most first."""
        lines, origins = self.computations[self.entry], self._origins(self.entry, [])
        loops = [self._loop(line, _carried(line, lines, origins)) for line in lines.values() if line.opcode == "while"]
        return sorted(loops, key=lambda loop: -sum(loop.reads.values()))

    def once(self) -> list[Move]:
        """Lists what moves outside of loops, once a run, largest first."""
        return sorted(self._moves(self.entry, self._origins(self.entry, []), 1), key=_largest_first)

    def _loop(self, line: Instruction, carried: list[str]) -> Loop:
        [body] = line.called("body")
        moves, writes, cycles = list[Move](), 0, 0
        for name, origins, times in self._reached(body, carried, 1):
            moves += self._moves(name, origins, times)
            for each in self.computations[name].values():
                writes += 0 if self._is_move(each) else times * _written(each)
                cycles += times * each.cycles
        reads = dict.fromkeys(("weights", "cache"), 0)
        for array, origin in zip(line.arrays, carried, strict=True):
            if (kind := self._kind(origin, array)) in reads:
                reads[kind] += array.bytes
        return Loop(body, reads, tuple(sorted(moves, key=_largest_first)), writes, cycles)

    def _reached(self, name: str, carried: list[str], times: int) -> Iterator[tuple[str, dict[str, str], int]]:
        """Gives a computation and those that it runs, no fusions: its values' origins, and how often one pass runs it."""
        lines, origins = self.computations[name], self._origins(name, carried)
        yield name, origins, times
        for line in lines.values():
            if line.opcode == "while":
                [body] = line.called("body")
                yield from self._reached(body, _carried(line, lines, origins), times * line.trips)
            elif line.opcode in ("conditional", "call"):
                called = line.called("branch_computations", "to_apply", "calls")
                for each, operand in zip(called, line.operands[-len(called) :], strict=False):
                    of = lines.get(operand)
                    taken = of.operands if of is not None and of.opcode == "tuple" else (operand,)
                    yield from self._reached(each, [origins.get(name, "") for name in taken], times)

    def _origins(self, name: str, carried: list[str]) -> dict[str, str]:
        """Says which argument each value of a computation is another form of, "" for none.

        Args:
          name: of the computation.
          carried: the same of what it is called with; of the entry nothing, whose arguments have names.
        """
        origins: dict[str, str] = {}
        lines = self.computations[name]
        for line in lines.values():
            first = line.operands[0] if line.operands else ""
            if line.opcode == "parameter":
                alone = carried[0] if len(carried) == 1 else ""
                origins[line.name] = line.source if name == self.entry else alone
            elif line.opcode == "get-tuple-element":
                index, of = int(line.attribute("index")), lines.get(first)
                if of is not None and of.opcode == "parameter":
                    origins[line.name] = carried[index] if index < len(carried) else ""
                elif of is not None and of.opcode == "while":
                    origins[line.name] = _carried(of, lines, origins)[index]
                else:
                    origins[line.name] = origins.get(first, "")
            elif line.opcode in NAMES | {"dynamic-update-slice"} or self._is_move(line):
                origins[line.name] = next((origins[x] for x in line.operands if origins.get(x)), "")
        return origins

    def _is_move(self, line: Instruction) -> bool:
        """Says whether an instruction computes nothing."""
        if line.opcode != "fusion":
            return line.opcode in MOVES | GATHERS or "ConcatBitcast" in line.rest
        inner = {each.opcode for name in line.called("calls") for each in self.computations[name].values()}
        return inner <= MOVES | NAMES and bool(inner & MOVES)

    def _moves(self, name: str, origins: dict[str, str], times: int) -> list[Move]:
        found = []
        for line in self.computations[name].values():
            size = _written(line)
            if not size or not self._is_move(line):
                continue
            largest, opcode = max(line.arrays, key=lambda array: array.bytes), line.opcode
            if opcode == "fusion":
                inner = [x for called in line.called("calls") for x in self.computations[called].values()]
                opcode = max((x for x in inner if x.opcode in MOVES), key=lambda x: x.arrays[0].bytes).opcode
            origin = origins.get(line.name, "")
            kind = "gathered" if opcode in GATHERS else self._kind(origin, largest)
            found.append(Move(kind, origin or line.source, str(largest), opcode, times * size))
        return found

    def _kind(self, origin: str, array: Array) -> str:
        if origin.startswith("params"):
            return "weights"
        return "cache" if "cache" in origin or math.prod(array.shape) in self.cache_sizes else "other"


def _carried(line: Instruction, lines: dict[str, Instruction], origins: dict[str, str]) -> list[str]:
    """Says where each array that a loop carries comes from, "" where from no argument."""
    initial = lines.get(line.operands[0])
    if initial is None or initial.opcode != "tuple":
        return [""] * len(line.arrays)
    return [origins.get(name, "") for name in initial.operands]


def _largest_first(move: Move) -> int:
    return -move.bytes


def _operands(rest: str) -> tuple[tuple[str, ...], str]:
    """Splits what stands behind an opcode's bracket into names and the rest."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            inside = rest[:place]
            named = re.findall(r"%([\w.\-]+)", inside)
            return tuple(named or re.findall(r"^\d+$", inside)), rest[place:]
    return (), rest


def _written(line: Instruction) -> int:
    """Counts the bytes that an instruction writes to main memory; of an update in place, those of the update."""
    if line.opcode in NAMES | {"while", "conditional", "call", "copy-done", "slice-done", "dynamic-update-slice"}:
        return 0
    arrays = line.arrays
    if line.opcode == "copy-start":  # where to, where from, and a context
        arrays = arrays[:1]
    if line.opcode == "slice-start":
        arrays = arrays[1:2]
    if "dynamic-update-slice" in line.name.replace("_", "-"):  # a fusion that ends with one
        return 0
    return sum(array.bytes for array in arrays if array.is_in_main_memory)
