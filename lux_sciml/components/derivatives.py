"""Derivatives with names, and the context in which solvers choose their adjoint."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from .layout import Layout
from .matrix import ComponentMatrix
from .safe_map import layout_of
from .vector import ComponentVector

_MODES = ("forward", "reverse", "both")
_wanted = jax.make_user_context(default_value=None)  # part of the key of every jit cache


@contextlib.contextmanager
def derivatives(mode: str) -> Iterator[None]:
    """Says how the functions called inside are differentiated: `"forward"`, `"reverse"` or `"both"` (second order).

    A layer cannot see the transform around it, but a solver must choose its adjoint for it; `adjoint="auto"` reads this
    context. It is part of the key of `jax.jit`, so that a function is traced anew where it changes. Contexts add up:
    `"reverse"` inside `"forward"` is `"both"`. `lux.jacobian`, `lux.hessian` and `lux.hvp` set it. Raises `ValueError`
    for another mode.

    >>> with derivatives("forward"):
    ...     current_derivatives()
    'forward'
    """
    if mode not in _MODES:
        raise ValueError(f"derivatives takes one of {', '.join(map(repr, _MODES))}, got {mode!r}")
    outer = current_derivatives()
    with _wanted(mode if outer in (None, mode) else "both"):
        yield


def current_derivatives() -> str | None:
    """The modes asked for by the `derivatives` contexts around this call; `None` outside of them."""
    return _wanted.value


def jacobian(f: Callable[..., Any], *, mode: str | None = None, has_aux: bool = False) -> Callable[..., Any]:
    """The function whose value is the Jacobian of `f` by its first argument, as a ComponentMatrix.

    Columns have the names of the first argument, rows those of the output: ComponentVectors, or trees of floating-point
    arrays; a plain array has plain rows, of its shape. `mode` is `"forward"` (one pass for each column) or `"reverse"`
    (one for each row); by default the one with fewer passes. With `has_aux`, `f` returns `(output, aux)` and so does
    the Jacobian. Solvers with `adjoint="auto"` follow the mode. Under `jax.jit`, call it inside.

    Raises `TypeError` where `f` cannot be differentiated in the mode.

    >>> p = ComponentVector(rate=2, u0=[1, 3])
    >>> J = jacobian(lambda p: jnp.exp(-p.rate) * p.u0)(p)
    >>> J.shape, J[:, "u0"].shape, J[0, "rate"].shape
    ((2, 3), (2, 2), ())
    """
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f"mode is 'forward', 'reverse' or None, got {mode!r}")

    def value(x, *args):
        flat, columns = _flat(x)
        flat_f = _flat_function(f, x, args, has_aux)
        chosen = mode
        if chosen is None:
            (rows,), _ = jax.eval_shape(lambda flat: ((flat_f(flat)[0],), None), flat)
            chosen = "forward" if columns.size <= rows.size else "reverse"
        transform = jax.jacfwd if chosen == "forward" else jax.jacrev
        with derivatives(chosen), _explained():
            matrix, (rows, aux) = transform(flat_f, has_aux=True)(flat)
        named = ComponentMatrix(matrix, rows.value, columns)
        return (named, aux) if has_aux else named

    return value


def hessian(f: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """The function whose value is the Hessian of the scalar function `f` by its first argument, as a ComponentMatrix.

    Forward over reverse mode. With `has_aux`, `f` returns `(value, aux)` and so does the Hessian. Raises `TypeError`
    where the value of `f` is not one number.

    >>> H = hessian(lambda p: p.a**2 * p.b.sum())(ComponentVector(a=3, b=[1, 2]))
    >>> H["a", "a"], H["a", "b"]
    (Array(6., dtype=float32), Array([6., 6.], dtype=float32))
    """

    def value(x, *args):
        flat, layout = _flat(x)
        with derivatives("both"), _explained():
            gradient = jax.grad(_scalar_function(f, x, args, has_aux), has_aux=True)
            matrix, aux = jax.jacfwd(gradient, has_aux=True)(flat)
        named = ComponentMatrix(matrix, layout, layout)
        return (named, aux) if has_aux else named

    return value


def hvp(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function `(x, v, *args) -> H v`, the Hessian of the scalar function `f` by its first argument times `v`.

    `v` is a vector or tree with the names of `x`, or the flat array of such a vector; the result is of the kind of `x`.
    Forward over reverse mode: the cost is that of a few gradients, and the Hessian is never built.

    >>> hvp(lambda p: p.a**2 * p.b)(ComponentVector(a=3, b=1), ComponentVector(a=1, b=0))
    ComponentVector(a=2, b=6)
    """

    def value(x, v, *args):
        flat, layout = _flat(x)
        direction = (layout.ravel(v) if layout_of(x) is None else layout.check(v)).astype(flat.dtype)
        with derivatives("both"), _explained():
            gradient = jax.grad(_scalar_function(f, x, args, False), has_aux=True)
            return _like(x, jax.jvp(lambda flat: gradient(flat)[0], (flat,), (direction,))[1], layout)

    return value


@jax.tree_util.register_static
class _Static:
    """A layout on its way out of a transform."""

    def __init__(self, value: Layout):
        self.value = value


def _flat(x: Any) -> tuple[jax.Array, Layout]:
    layout = Layout.of(x)
    return layout.ravel(x), layout


def _like(x: Any, flat: jax.Array, layout: Layout) -> Any:
    return ComponentVector.tree_unflatten(layout, (flat,)) if layout_of(x) is not None else layout.unravel(flat)


def _flat_function(f: Callable[..., Any], x: Any, args: tuple[Any, ...], has_aux: bool) -> Callable[..., Any]:
    """`f` from flat vector to flat vector, with the layout of its output and its own aux beside."""
    layout = Layout.of(x)

    def flat_f(flat):
        out = f(_like(x, flat, layout), *args)
        out, aux = out if has_aux else (out, None)
        flat_out, rows = _flat(out)
        return flat_out, (_Static(rows), aux)

    return flat_f


def _scalar_function(f: Callable[..., Any], x: Any, args: tuple[Any, ...], has_aux: bool) -> Callable[..., Any]:
    layout = Layout.of(x)

    def scalar_f(flat):
        out = f(_like(x, flat, layout), *args)
        out, aux = out if has_aux else (out, None)
        if jnp.shape(out) != ():
            raise TypeError(f"expected a function whose value is one number, got one of shape {jnp.shape(out)}")
        return out, aux

    return scalar_f


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns JAX's errors about a mode that a function does not have into what to do about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        if "forward-mode autodiff (jvp) to a custom_vjp function" in text:
            raise TypeError(
                "this function has a reverse mode only (a custom_vjp, as of a solver's adjoint): take "
                "`mode='reverse'`, or a solver with `adjoint='auto'`, which follows the mode"
            ) from error
        if "Reverse-mode differentiation does not work" in text:
            raise TypeError(
                "this function has a forward mode only (a while_loop with an open end): take `mode='forward'`, or a "
                "solver with `adjoint='auto'`, which follows the mode"
            ) from error
        raise
