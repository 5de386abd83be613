"""Compiled programs: what they take and give, and the ones that are there already."""

from jax_probe_mtp.generation.programs.clock import CompileClock
from jax_probe_mtp.generation.programs.compiled import Programs
from jax_probe_mtp.generation.programs.kept import keep_programs
from jax_probe_mtp.generation.programs.on_mesh import (
    EVERYWHERE,
    PREFIX,
    REQUEST,
    ROWS,
    STATE,
    Function,
    Program,
    results_of,
)

__all__ = [
    "EVERYWHERE",
    "PREFIX",
    "REQUEST",
    "ROWS",
    "STATE",
    "CompileClock",
    "Function",
    "Program",
    "Programs",
    "keep_programs",
    "results_of",
]
