"""The collectives of a compiled program: what each moves, and how often."""

import math
import re
from typing import NamedTuple

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
SIZES = {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "bf16": 2, "pred": 1}


class Collective(NamedTuple):
    kind: str
    bytes: int  # of its result
    trips: int  # of the loop that it is in; 1 outside of one
    in_loop: bool


def collectives(program):
    """Those of a program's text, except of single numbers, such as the loss."""
    loops = {}
    for line in program.splitlines():
        if " while(" in line:
            body, trips = re.search(r"body=%([\w.\-]+)", line), re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            loops[body[1]] = int(trips[1]) if trips else 0
    found, name = [], ""
    for line in program.splitlines():
        head = re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line)
        name = head[1] if head else name
        match = re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line)
        if match:
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            size = sum(SIZES[kind] * math.prod(map(int, filter(None, shape.split(",")))) for kind, shape in arrays)
            if size > 64:
                found.append(Collective(match[2], size, loops.get(name, 1), name in loops))
    return found
