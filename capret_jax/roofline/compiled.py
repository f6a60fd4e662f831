"""Memory and link traffic of a compiled program: bytes to and from HBM, and between chips.

XLA's own cost analysis counts the body of a loop once, and counts arrays in a TPU's vector memory
(memory space 1 in a layout, `S(1)`) as if they were in HBM; for GPUs there is none. The functions
here parse the program's text.
"""

import collections
import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "s4": 4, "u4": 4, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
# Workspace of a call to cuBLAS or cuDNN, the last of its results.
_WORKSPACE = re.compile(r", [su]8\[\d+\](\{[^}]*\})?\)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Operations that move no data.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
        name: name without the percent sign.
        shape: type of the result, as text.
        operation: kind of operation, "fusion" for instance.
        operands: names of the operands.
        line: the whole line of text.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    line: str

    def called(self, key: str) -> str:
        """Returns the name of the computation in the attribute `key=`, or ""."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.line)
        return match.group(1) if match else ""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one chip moves in one run of a program.

    Attributes:
        hbm_bytes: bytes read from and written to HBM.
        collective_bytes: kind of collective -> bytes of this chip's operands.
    """

    hbm_bytes: float
    collective_bytes: dict[str, float]


def measure_traffic(text: str) -> Traffic:
    """Adds up the traffic of a program; the body of a loop counts for each iteration.

    Args:
        text: `compiled.as_text()` of a program scheduled for a TPU or a GPU.
    """
    return _Program(text).traffic()


def array_bytes(shape: str, hbm_only: bool = True) -> int:
    """Returns the size of an array or tuple type.

    Args:
        shape: the type, as in the program's text.
        hbm_only: count arrays outside of HBM as 0 bytes.
    """
    total = 0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if hbm_only and re.search(r"S\([1-9]", layout or ""):
            continue
        bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
        count = math.prod(int(size) for size in dimensions.split(",") if size)
        total += count * bits // 8
    return total


class _Program:
    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry, current = "", None
        for line in text.splitlines():
            header = _COMPUTATION.match(line)
            if header:
                current = self._computations.setdefault(header.group(2), {})
                self._entry = header.group(2) if header.group(1) else self._entry
            elif current is not None and (match := _INSTRUCTION.match(line)):
                name, shape, operation, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
                current[name] = Instruction(name, shape, operation, operands, line)

    def traffic(self) -> Traffic:
        hbm, collectives = self._traffic_of(self._entry)
        return Traffic(hbm, dict(collectives))

    @functools.cache  # noqa: B019 - a program lives as long as its measurement
    def _traffic_of(self, computation: str) -> tuple[float, collections.Counter]:
        hbm, collectives = 0.0, collections.Counter[str]()
        table = self._computations[computation]
        for instruction in table.values():
            operation = instruction.operation
            if operation == "while":
                times = self._trips(instruction)
                inside, moved = self._traffic_of(instruction.called("body"))
                hbm += times * inside
                collectives.update({kind: times * size for kind, size in moved.items()})
            elif operation in ("call", "conditional"):
                inside, moved = self._traffic_of(instruction.called("to_apply"))
                hbm += inside
                collectives.update(moved)
            elif operation not in _FREE and not operation.endswith("-done"):
                hbm += self._moved(instruction, table)
                kind = operation.removesuffix("-start")
                if kind in _COLLECTIVES:
                    collectives[kind] += self._operand_bytes(instruction, table, hbm_only=False)
        return hbm, collectives

    def _trips(self, loop: Instruction) -> int:
        """Returns the iterations of a loop, from XLA's annotation or the limit in its condition."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line)
        if known:
            return int(known.group(1))
        condition = self._computations[loop.called("condition")]
        limits = [
            int(match.group(1))
            for line in condition.values()
            if (match := re.search(r" constant\((\d+)\)", line.line))
        ]
        # A loop whose end depends on data counts once.
        return max(limits, default=1)

    def _moved(self, instruction: Instruction, table: dict[str, Instruction]) -> float:
        if instruction.operation in ("copy-start", "slice-start"):
            # (operand, result, context): a part of the operand is read, the result is written.
            _, result, *_ = _ARRAY.finditer(instruction.shape)
            source = table.get(instruction.operands[0])
            from_hbm = source is not None and array_bytes(source.shape) > 0
            size = array_bytes(result.group(0), hbm_only=False)
            return size * from_hbm + array_bytes(result.group(0))
        if instruction.operation == "fusion":
            return self._fusion_bytes(instruction, table)
        if instruction.operation in ("dynamic-slice", "slice", "gather"):
            return 2 * array_bytes(instruction.shape)
        if instruction.operation == "dynamic-update-slice":
            return 2 * self._shape_bytes(instruction.operands[1], table)
        shape = instruction.shape
        if 'custom_call_target="__cu' in instruction.line:
            shape = _WORKSPACE.sub(")", shape)
        return array_bytes(shape) + self._operand_bytes(instruction, table)

    def _fusion_bytes(self, fusion: Instruction, table: dict[str, Instruction]) -> float:
        """Counts operands and results; of those only sliced or updated in place, the slice."""
        body = self._computations.get(fusion.called("calls"), {})
        parameters = {
            int(match.group(1)): line.name
            for line in body.values()
            if (match := re.search(r" parameter\((\d+)\)", line.line))
        }
        total, in_place = 0.0, 0.0
        for i, operand in enumerate(fusion.operands):
            size: float = self._shape_bytes(operand, table)
            users = [x for x in body.values() if parameters.get(i) in x.operands]
            updates = [
                x
                for x in users
                if x.operation == "dynamic-update-slice" and x.operands[0] == parameters.get(i)
            ]
            if size and updates and len(updates) == len(users):
                in_place += size
                size = sum(array_bytes(body[x.operands[1]].shape, hbm_only=False) for x in updates)
                in_place -= size
            elif size and users:
                size = min(size, self._read_bytes(fusion.called("calls"), i))
            total += size
        return total + max(array_bytes(fusion.shape) - in_place, 0)

    @functools.cache  # noqa: B019 - a program lives as long as its measurement
    def _read_bytes(self, computation: str, parameter: int) -> float:
        """Returns the bytes that a fusion reads of a parameter: slices of it, or all of it.

        A slice may be in a fusion inside of the fusion, as for the operands of a product on a TPU.
        """
        body, total = self._computations[computation], 0.0
        position = rf" parameter\({parameter}\)"
        names = {x.name for x in body.values() if re.search(position, x.line)}
        for x in body.values():
            if names.isdisjoint(x.operands):
                continue
            if x.operation in ("dynamic-slice", "slice", "gather") and x.operands[0] in names:
                total += array_bytes(x.shape, hbm_only=False)
            elif x.operation == "fusion":
                inside = [i for i, operand in enumerate(x.operands) if operand in names]
                total += sum(self._read_bytes(x.called("calls"), i) for i in inside)
            else:
                return math.inf
        return total

    def _operand_bytes(self, instruction, table, hbm_only: bool = True) -> int:
        return sum(self._shape_bytes(name, table, hbm_only) for name in instruction.operands)

    @staticmethod
    def _shape_bytes(name: str, table, hbm_only: bool = True) -> int:
        return array_bytes(table[name].shape, hbm_only) if name in table else 0
