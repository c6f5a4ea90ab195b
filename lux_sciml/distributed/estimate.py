"""What a step needs on each device, from a formula: memory, and bytes that are moved."""

from typing import NamedTuple

from ..core.converters import checks_itself, count, flag, natural


class Estimate(NamedTuple):
    """Bytes of one device: see `estimate`.

    >>> estimate(1000, 4).moved
    6000
    """

    state: int
    work: int
    gathered: int
    summed: int
    moved: int


@checks_itself
def estimate(
    size: float,
    devices: int,
    how: str = "full",
    *,
    rows: int = 0,
    memory: int = 2,
    itemsize: int = 4,
    reduce_scatter: bool = True,
) -> Estimate:
    """Bytes of each device for a step with `size` parameters, beside those of the batch and of what layers make of it.

    * `size`: a whole number, also as `1e9`;
    * `how`: `"replicated"` or `"full"`, as for `shard`;
    * `rows`: into how many rows of equal length the parameters are cut, as by `Stack(block, rows, flat_rows=True,
      checkpoint=True)`; 0 where they are one vector;
    * `memory`: how many vectors of this size are kept beside the parameters, 2 for Adam; one more with `ema`;
    * `itemsize`: bytes of an element;
    * `reduce_scatter`: whether the compiler divides gradients while it sums them. On the CPU it sums them whole.

    With n parameters, N devices, L rows and b bytes an element:

    * `state` is (1 + memory) b n, or a part of 1/N of it with "full";
    * `work`: the gradient and the arrays cut out of the vector, 2 b n; with rows, one row of both, and a part of the
      gradient, 2 b n / L + b n / N;
    * `gathered`, `summed`: the results of gathers, b n with "full" and, since the backward pass gathers again, 2 b n
      with rows; and of sums over devices, b n;
    * `moved`: what a device sends, in a ring: (N - 1) / N of each, and of sums that all devices get, twice as much.

    Raises `ValueError` for another `how`, `TypeError` for numbers that are not whole.

    >>> estimate(1e9, 64, rows=48)
    Estimate(state=187500000, work=229166666, gathered=8000000000, summed=4000000000, moved=11812500000)
    """
    if isinstance(size, float):
        if not size.is_integer():
            raise TypeError(f"the size is a whole number of parameters, got {size}")
        size = int(size)
    n, devices, rows = count(size) * count(itemsize), count(devices), natural(rows)
    vectors = 1 + natural(memory)
    if how not in ("replicated", "full"):
        raise ValueError(f"how is 'replicated' or 'full', got {how!r}")
    full = how == "full"
    several = devices > 1
    gathered = n * (2 if rows else 1) if full and several else 0
    summed = n if several else 0
    turns = gathered + summed * (1 if full and flag(reduce_scatter) else 2)
    part = -(-n // devices) if full else n
    work = 2 * n // rows + part if full and rows else 2 * n
    return Estimate(vectors * part, work, gathered, summed, turns * (devices - 1) // devices)
