"""Every use of JAX's internals, each with a fallback that is slower or stricter, never wrong."""

from typing import Any

import jax


def made_in_current_trace(x: Any) -> bool:
    """Whether `x` is a tracer of the innermost trace, so that what is computed from it may be kept beside it.

    Where JAX's internals have moved, the answer is `False`: the caller then computes anew.
    """
    try:
        from jax._src.core import trace_ctx

        return isinstance(x, jax.core.Tracer) and x._trace is trace_ctx.trace
    except (ImportError, AttributeError):
        return False
