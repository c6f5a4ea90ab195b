"""What is computed in one way on the CPU and in another elsewhere, and where there is no such choice."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax

from ._compat import JitKey

_one_for_all = JitKey()


@contextlib.contextmanager
def one_program() -> Iterator[None]:
    """Inside, what is traced is the same for all platforms, for file formats without a choice among them."""
    before = _one_for_all.value
    _one_for_all.set(True)
    try:
        yield
    finally:
        _one_for_all.set(before)


def by_platform(*arrays: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`cpu(*arrays)` on the CPU, and `default(*arrays)`, which is as right, elsewhere."""
    if _one_for_all.value:
        return default(*arrays)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)
