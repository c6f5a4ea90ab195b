"""What is computed in one way on the CPU and in another elsewhere, and where there is no such choice."""

import contextlib
from collections.abc import Callable
from typing import Any

from jax import lax

from ._compat import JitKey

_one_for_all = JitKey()


def one_program() -> contextlib.AbstractContextManager[None]:
    """Inside, what is traced is the same for all platforms, for file formats without a choice among them."""
    return _one_for_all.holding(True)


def by_platform(*arrays: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`cpu(*arrays)` on the CPU, and `default(*arrays)`, which is as right, elsewhere."""
    if _one_for_all.value:
        return default(*arrays)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)
