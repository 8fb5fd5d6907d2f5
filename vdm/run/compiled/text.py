"""What a compiled program's text says of its collectives and of the bytes that it moves.

Of a loop XLA's own counts have one round: here every instruction counts as often as it is run, by
the trip counts that the compiler writes beside its loops.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32},
    **{"s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# They move nothing by themselves: names of values, or bodies that are counted inside.
FREE = {
    *("parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier"),
}

NUMBERED = {"constant", "parameter"}
SLICE, UPDATE = "dynamic-slice", "dynamic-update-slice"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:(?:body|condition|calls|to_apply)=%?([\w.\-]+)|branch_computations=\{([^}]*)\})"
)


class Instruction(NamedTuple):
    """One instruction of a program: its operation, its results and the names of its operands."""

    name: str
    operation: str
    dtypes: tuple[str, ...]  # of the results
    results: tuple[int, ...]  # bytes
    operands: tuple[str, ...]
    called: tuple[str, ...]  # of a loop its body and its condition
    trips: int | None  # of a loop, where the compiler has written them beside it
    number: int | None  # of a constant its value, of a parameter its place


class Collective(NamedTuple):
    """The collectives of one kind in a step: how many are run, and the bytes of whole arrays."""

    kind: str
    times: int
    num_bytes: int
    dtypes: frozenset[str]


class Program(NamedTuple):
    """A program's computations by name, and how often each one is run."""

    computations: Mapping[str, tuple[Instruction, ...]]
    runs: Mapping[str, int]
    fused: frozenset[str]  # computations inside a fusion: what they read stays in the core


def parse(text: str) -> Program:
    """Return the program of the text of a compiled one, `jax.stages.Compiled.as_text()`."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name, lines = match[2], []
            entry = name if match[1] else entry
        elif line == "}":
            computations[name] = tuple(lines)
        elif match := _INSTRUCTION.match(line):
            lines.append(_instruction(match[1], match[2]))
    runs: dict[str, int] = dict.fromkeys(computations, 0)
    fused: set[str] = set()

    def visit(name: str, times: int, inside: bool) -> None:
        runs[name] += times
        if inside:
            fused.add(name)
        for one in computations[name]:
            within = inside or one.operation not in ("while", "conditional", "call")
            trips = _trips(one, computations) if one.operation == "while" else 1
            for called in one.called:
                visit(called, times * trips, within)

    visit(entry, 1, False)
    return Program(computations, runs, frozenset(fused))


def collectives(program: Program) -> list[Collective]:
    """Return a step's collectives by kind, as often as they are run.

    A sum of arrays of which all but a device's own part is zero is the gather that it stands for
    (a TPU's compiler writes small ones so), and a sum of which the parts are cut out again is a
    reduce-scatter.
    """
    parts: dict[str, list[tuple[int, str]]] = {}
    times: dict[str, int] = {}
    sizes = {one.name: sum(one.results) for _, one in _run(program)}
    for name, one in _run(program):
        kind = one.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        # An asynchronous one returns its operands too, and other things behind the results.
        start = (
            len(one.operands) if kind != "all-reduce" and one.operation.endswith("-start") else 0
        )
        found = set()
        for i, operand in enumerate(one.operands):
            own = kind
            if kind == "all-reduce" and operand.startswith("dynamic-update-slice"):
                own = "all-gather"
            # Whole: what is gathered, and what is summed before it is scattered.
            size = max(one.results[start + i], sizes.get(operand, 0))
            parts.setdefault(own, []).append((program.runs[name] * size, one.dtypes[start + i]))
            found.add(own)
        for own in found:
            times[own] = times.get(own, 0) + program.runs[name]
    return [
        Collective(
            kind, times[kind], sum(size for size, _ in own), frozenset(dtype for _, dtype in own)
        )
        for kind, own in sorted(parts.items())
    ]


def num_bytes(program: Program) -> int:
    """Return the bytes that a device reads and writes in a step: operands and results of all.

    Of an array that is cut into, or written to, a part at a time only that part counts.
    """
    total = 0
    for name, instructions in program.computations.items():
        if name in program.fused or not program.runs[name]:
            continue
        sizes = {one.name: sum(one.results) for one in instructions}
        moved = sum(
            _moved(one, program.computations, sizes)
            for one in instructions
            if one.operation not in FREE and not one.operation.endswith("-done")
        )
        total += program.runs[name] * moved
    return total


def _moved(
    one: Instruction,
    computations: Mapping[str, tuple[Instruction, ...]],
    sizes: Mapping[str, int],
) -> int:
    """Return the bytes that an instruction reads and writes; `sizes` are those around it."""
    operands = [sizes.get(operand, 0) for operand in one.operands]
    if one.operation == SLICE:
        return 2 * sum(one.results)
    if one.operation == UPDATE:
        return 2 * operands[1]
    if one.operation != "fusion":
        return sum(one.results) + sum(operands)
    inside = computations[one.called[0]]
    read = sum(
        min(operands[part.number], _read(part.name, inside, computations))
        for part in inside
        if part.operation == "parameter" and part.number is not None
    )
    return read + _written(inside, computations)


def _read(
    name: str,
    inside: tuple[Instruction, ...],
    computations: Mapping[str, tuple[Instruction, ...]],
) -> int:
    """Return how much of a value the instructions of a fusion read."""
    whole = next(sum(one.results) for one in inside if one.name == name)
    if inside[-1].name == name:  # as it is, a result
        return whole
    total = 0
    for user in (user for user in inside if name in user.operands):
        if user.operation == "bitcast":
            total += _read(user.name, inside, computations)
        elif user.operation == "fusion":
            deeper = computations[user.called[0]]
            places = {i for i, operand in enumerate(user.operands) if operand == name}
            for part in deeper:
                if part.operation == "parameter" and part.number in places:
                    same = _source(deeper[-1].name, {one.name: one for one in deeper}) is part
                    of = (user.name, inside) if same else (part.name, deeper)
                    total += _read(*of, computations)
        elif user.operation == SLICE and user.operands[0] == name:
            total += sum(user.results)
        elif user.operation != UPDATE or user.operands[0] != name:  # else written in place
            return whole
    return min(whole, total)


def _source(name: str, inside: Mapping[str, Instruction]) -> Instruction:
    """Return the instruction whose value this one is, seen as another shape or as it is."""
    part = inside[name]
    while part.operation == "bitcast" and part.operands[0] in inside:
        part = inside[part.operands[0]]
    return part


def _written(
    inside: tuple[Instruction, ...], computations: Mapping[str, tuple[Instruction, ...]]
) -> int:
    """Return how much of its results a fusion writes."""
    by_name = {one.name: one for one in inside}
    root = inside[-1]
    total = 0
    for end in root.operands if root.operation == "tuple" else (root.name,):
        part = _source(end, by_name)
        if part.operation == UPDATE:
            total += sum(by_name[part.operands[1]].results)
        elif part.operation == "fusion":
            total += _written(computations[part.called[0]], computations)
        else:
            total += sum(by_name[end].results)
    return total


def has_loops(program: Program) -> bool:
    """Return whether a part of the program is run more than once in a step."""
    return any(times > 1 for name, times in program.runs.items() if name not in program.fused)


def _trips(loop: Instruction, computations: Mapping[str, tuple[Instruction, ...]]) -> int:
    """Return how often a loop is run: while a counter from 0 is less than a constant; 1 if unknown.

    A loop that ends by what it computes, such as a search, has no such constant.
    """
    if loop.trips is not None:
        return loop.trips
    for name in loop.called:
        constants = {
            one.name: one.number for one in computations[name] if one.operation == "constant"
        }
        for one in computations[name]:
            if one.operation == "compare" and one.dtypes == ("pred",):
                bounds = [constants[operand] for operand in one.operands if operand in constants]
                known = [bound for bound in bounds if bound is not None]
                if known and computations[name][-1] is one:
                    return known[0]
    return 1


def _run(program: Program) -> Iterator[tuple[str, Instruction]]:
    for name, instructions in program.computations.items():
        if program.runs[name]:
            for one in instructions:
                yield name, one


def _instruction(name: str, rest: str) -> Instruction:
    shape, operation, rest = _split(rest)
    shapes = _SHAPE.findall(shape)
    known = [(dtype, dims) for dtype, dims in shapes if dtype in BITS]
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * BITS[dtype] // 8 for dtype, dims in known
    ]
    inside, after = _parentheses(rest)
    called = [
        word.strip().lstrip("%")
        for one, several in _CALLED.findall(after)
        for word in (one or several).split(",")
    ]
    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', after)
    return Instruction(
        name=name,
        operation=operation,
        dtypes=tuple(dtype for dtype, _ in known),
        results=tuple(sizes),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        called=tuple(called),
        trips=int(trips[1]) if operation == "while" and trips else None,
        number=int(inside) if operation in NUMBERED and inside.isdigit() else None,
    )


def _split(text: str) -> tuple[str, str, str]:
    """Return the shape, the operation and what comes after it of an instruction's right side."""
    if text.startswith("("):
        inside, after = _parentheses(text)
        shape, text = inside, after.lstrip()
    else:
        shape, _, text = text.partition(" ")
    operation, _, rest = text.partition("(")
    return shape, operation.strip(), f"({rest}"


def _parentheses(text: str) -> tuple[str, str]:
    """Return what is in the first parentheses of a text that begins with one, and what follows."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:at], text[at + 1 :]
    return text[1:], ""
