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


def trace_state() -> Any:
    """A value that is equal in two places where the same transforms are tracing.

    Where JAX's internals have moved, it is `None` everywhere: a leaked tracer is then JAX's own error, later.
    """
    try:
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state(convention="nnx")
    except (ImportError, TypeError):
        return None
