"""Read cycles, collectives and loops from the text of an optimised program.

XLA's own cost analysis counts the body of a loop once, however often it runs. The text of a program
that was compiled for a TPU has the compiler's estimate of the cycles of each fused operation; here
they are added up, with every loop as often as it runs. The compiler estimates no gathers,
collectives and most copies: they count nothing.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from fedjax_lora.federated.training import STEPS

COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_EITHER = re.compile(r"true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")
_CALL = re.compile(r" (?:call|async-start)\(.*?(?:to_apply|calls)=%?([\w.\-]+)")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_COMPARE = re.compile(r" compare\(([^)]*)\), direction=(LT|GT)")
_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One array of a collective operation, as it is on a device afterwards."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class Loop(NamedTuple):
    """A loop: its body, how often it runs if that is fixed, and where it comes from."""

    body: str
    trips: int | None
    name: str


@dataclasses.dataclass
class Computation:
    """What is of interest in one computation of a program.

    Attributes:
      cycles: estimated cycles of its own operations.
      collectives: its own collective operations.
      loops: its loops.
      calls: names of the computations that it calls once.
      switches: for each conditional the names of its branches, in their order.
    """

    cycles: int = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: list[Loop] = dataclasses.field(default_factory=list)
    calls: list[str] = dataclasses.field(default_factory=list)
    switches: list[tuple[str, ...]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """An optimised program.

    Attributes:
      computations: its computations by name, fused ones left out.
      entry: name of the one that runs.
    """

    computations: Mapping[str, Computation]
    entry: str

    def cycles(self, *, steps: int, branch: int, branches: int) -> int:
        """Sum the estimated cycles.

        Args:
          steps: how often loops over local steps run.
          branch: which branch a conditional with ``branches`` branches takes, that is, the shape of
            all local steps; of other conditionals the longest branch counts.
          branches: number of shapes.
        """

        def taken(costs: tuple[int, ...]) -> int:
            return costs[branch] if len(costs) == branches else max(costs)

        return self._sum(lambda one: one.cycles, taken, steps)

    def collectives(self, *, steps: int) -> dict[str, tuple[int, int]]:
        """Return number and bytes of the collectives on a device by kind, loops multiplied.

        Args:
          steps: how often loops over local steps run.
        """
        found = {}
        for kind in COLLECTIVES:
            count, size = (
                self._sum(functools.partial(of, kind=kind), max, steps) for of in (_count, _bytes)
            )
            if count:
                found[kind] = (count, size)
        return found

    def unknown_loops(self) -> int:
        """Count the loops besides those over local steps whose length is not in the text."""
        loops = [loop for one in self.computations.values() for loop in one.loops]
        return sum(loop.trips is None and not _over_steps(loop) for loop in loops)

    def _sum(
        self,
        measure: Callable[[Computation], int],
        taken: Callable[[tuple[int, ...]], int],
        steps: int,
    ) -> int:
        """Sum a measure over all computations, as often as they run."""

        @functools.cache
        def total(name: str) -> int:
            one = self.computations.get(name)
            if one is None:
                return 0
            loops = (total(loop.body) * _trips(loop, steps) for loop in one.loops)
            switches = (taken(tuple(map(total, names))) for names in one.switches)
            return measure(one) + sum(loops) + sum(map(total, one.calls)) + sum(switches)

        return total(self.entry)


def _over_steps(loop: Loop) -> bool:
    """Whether a loop is the one over local steps, and not one inside of it."""
    return STEPS in loop.name and "/body" not in loop.name.rpartition(STEPS)[2]


def _trips(loop: Loop, steps: int) -> int:
    if loop.trips is not None:
        return loop.trips
    return steps if _over_steps(loop) else 1


def _count(one: Computation, *, kind: str) -> int:
    return sum(x.kind == kind for x in one.collectives)


def _bytes(one: Computation, *, kind: str) -> int:
    return sum(x.bytes for x in one.collectives if x.kind == kind)


def read(text: str) -> Program:
    """Read the text of an optimised program, as ``compiled.as_text()`` returns it.

    Raises:
      ValueError: the text has no entry computation.
    """
    bodies, entry = {}, ""
    for is_entry, name, lines in _computations(text):
        bodies[name], entry = lines, name if is_entry else entry
    if not entry:
        raise ValueError("This is not the text of a compiled program: it has no ENTRY.")
    computations = {name: _read_computation(lines, bodies) for name, lines in bodies.items()}
    return Program(computations, entry)


def _computations(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """Yield whether a computation is the entry, its name and its lines."""
    lines: list[str] | None = None
    for line in text.splitlines():
        if lines is None:
            if match := _HEADER.match(line):
                is_entry, name, lines = bool(match[1]), match[2], []
        elif line.startswith("}"):
            yield is_entry, name, lines
            lines = None
        else:
            lines.append(line)


def _read_computation(lines: list[str], bodies: Mapping[str, list[str]]) -> Computation:
    one = Computation()
    for line in lines:
        if match := _CYCLES.search(line):
            one.cycles += int(match[1])
        if " while(" in line and (match := _WHILE.search(line)):
            name = _NAME.search(line)
            trips = _trip_count(line, bodies.get(match[1], []))
            one.loops.append(Loop(match[2], trips, name[1] if name else ""))
        elif " conditional(" in line:
            one.switches.append(_branches(line))
        elif match := _CALL.search(line):
            one.calls.append(match[1])
        else:
            one.collectives += read_collectives(line)
    return one


def _branches(line: str) -> tuple[str, ...]:
    if match := _BRANCHES.search(line):
        return tuple(name.strip().lstrip("%") for name in match[1].split(","))
    match = _EITHER.search(line)
    return (match[1], match[2]) if match else ()


def _trip_count(line: str, condition: list[str]) -> int | None:
    """Return how often a loop runs: stated, or the constant that its counter is compared with.

    Loops of JAX with a fixed length count from 0 in steps of 1.
    """
    if match := _TRIPS.search(line):
        return int(match[1])
    constants = {m[1]: int(m[2]) for one in condition if (m := _CONSTANT.search(one))}
    for one in condition:
        match = _COMPARE.search(one)
        if match and one.lstrip().startswith("ROOT"):
            left, right = (word.split("%")[-1].strip() for word in match[1].split(","))
            return constants.get(right if match[2] == "LT" else left)
    return None


def read_collectives(line: str) -> list[Collective]:
    """Read the arrays of the collective in a line of a program; none if there is none."""
    match = _COLLECTIVE.search(line)
    if match is None:
        return []
    arrays = _ARRAY.findall(match[1])
    if match[3] and len(arrays) > 1:  # operands come before results
        arrays = arrays[len(arrays) // 2 :] if match[2] != "all-reduce" else arrays
    return [_collective(match[2], dtype, dims) for dtype, dims in arrays]


def _collective(kind: str, dtype: str, dims: str) -> Collective:
    shape = tuple(int(n) for n in dims.split(",") if n)
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return Collective(kind, dtype, shape, math.prod(shape) * bits // 8)
