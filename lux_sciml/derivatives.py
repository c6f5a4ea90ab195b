"""Derivatives with names, and the context in which solvers choose their adjoint.

At the root: `jacobian`, `hessian`, `hvp`. Here: of functions of inputs, as nets are, `batched_jacobian`, `divergence`,
`laplacian`, `value_gradient_laplacian` and `partial`; and `mode`, the context, of which `current` tells.
"""

import contextlib
import contextvars
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _names
from ._compat import JitKey
from ._forward_laplacian import second_order
from ._tree import describe, floating, is_traced, widened
from .components import ComponentMatrix, ComponentVector, Layout
from .components.layout import layout_of

__dir__ = _names.public(__name__)

_MODES = ("forward", "reverse", "both")


class _Entered:
    """A `mode` context, from entering to leaving it."""

    def __init__(self, mode: str, waits: bool):
        self.mode, self.waits, self.left = mode, waits, False


class _Thread(threading.local):
    """The contexts of a thread's coroutines, which may wait inside of them."""

    def __init__(self):
        self.waiting: set[_Entered] = set()


_thread = _Thread()
_entered: contextvars.ContextVar[tuple[_Entered, ...]] = contextvars.ContextVar("lux_sciml_derivatives", default=())
_jit_key = JitKey()  # the same for JAX, which keeps one for a thread


@contextlib.contextmanager
def mode(derivatives: str) -> Iterator[None]:
    """Says how the functions called inside are differentiated: `"forward"`, `"reverse"` or `"both"` (second order).

    A layer cannot see the transform around it, but a solver must choose its adjoint for it; `adjoint="auto"` reads this
    context. It is part of the key of `jax.jit`, so that a function is traced anew where it changes. Contexts add up:
    `"reverse"` inside `"forward"` is `"both"`. `lux.jacobian`, `lux.hessian` and `lux.hvp` set it. Raises `ValueError`
    for another mode.

    Threads and coroutines have their own. JAX's key does not follow when coroutines take turns: as long as one of them
    is inside of a context, what is traced in its thread serves both modes, but for what `lux.jacobian` and the others
    call.

    >>> with mode("forward"):
    ...     current()
    'forward'
    """
    if derivatives not in _MODES:
        raise ValueError(f"the mode of derivatives is one of {', '.join(map(repr, _MODES))}, got {derivatives!r}")
    this, waiting = _Entered(derivatives, _in_coroutine(sys._getframe(1))), _thread.waiting
    if this.waits:
        waiting.add(this)
    _entered.set((*_inside(), this))
    _tell_jax()
    try:
        yield
    finally:  # perhaps in another order than entered, or elsewhere: generators take turns, and are closed anywhere
        this.left = True
        waiting.discard(this)
        _entered.set(_inside())
        _tell_jax()


def current() -> str | None:
    """The modes asked for by the `mode` contexts around this call; `None` outside of them.

    >>> print(current())
    None
    """
    wanted = _wanted()
    if wanted != _jit_key.value and is_traced(jnp.zeros(())):
        return "both"  # this trace is kept for others too
    return wanted


def _inside() -> tuple[_Entered, ...]:
    return tuple(entered for entered in _entered.get() if not entered.left)


def _wanted() -> str | None:
    modes = {entered.mode for entered in _inside()}
    return modes.pop() if len(modes) == 1 else "both" if modes else None


def _tell_jax() -> None:
    """From here on JAX keeps traces by the mode of this place, or, where coroutines take turns, as for both."""
    inside = _inside()
    takes_turns = _thread.waiting and (not inside or inside[-1].waits)
    _jit_key.set("both" if takes_turns else _wanted())


def _in_coroutine(frame: types.FrameType | None) -> bool:
    """Whether a frame, or the one that entered the generators and the context managers it is in, is a coroutine's."""
    while frame and (frame.f_code.co_flags & inspect.CO_GENERATOR or frame.f_globals is vars(contextlib)):
        frame = frame.f_back
    waits = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
    return frame is not None and bool(frame.f_code.co_flags & waits)


_mode = mode  # where an argument hides it


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
        with _mode(chosen), _explained():
            matrix, (rows, aux) = transform(flat_f, has_aux=True)(flat)
        named = ComponentMatrix(matrix, rows.value, columns)
        return (named, aux) if has_aux else named

    return value


def hessian(f: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """The function whose value is the Hessian of the scalar function `f` by its first argument, as a ComponentMatrix.

    Forward over reverse mode. With `has_aux`, `f` returns `(value, aux)` and so does the Hessian. Raises `TypeError`
    where the value of `f` is no scalar.

    >>> H = hessian(lambda p: p.a**2 * p.b.sum())(ComponentVector(a=3, b=[1, 2]))
    >>> H["a", "a"], H["a", "b"]
    (Array(6., dtype=float32), Array([6., 6.], dtype=float32))
    """

    def value(x, *args):
        flat, layout = _flat(x)
        with _mode("both"), _explained(second_order=True):
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
        with _mode("both"), _explained(second_order=True):
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
    return ComponentVector(flat, layout) if layout_of(x) is not None else layout.unravel(flat)


def _flat_function(f: Callable[..., Any], x: Any, args: tuple[Any, ...], has_aux: bool) -> Callable[..., Any]:
    """`f` from flat vector to flat vector, with the layout of its output and its own aux beside."""
    layout = Layout.of(x)

    def flat_f(flat):
        out = f(_like(x, flat, layout), *args)
        out, aux = out if has_aux else (out, None)
        try:
            flat_out, rows = _flat(out)
        except TypeError as error:
            raise TypeError(f"derivatives are of floating-point outputs: {error}") from error
        return flat_out, (_Static(rows), aux)

    return flat_f


def _scalar_function(f: Callable[..., Any], x: Any, args: tuple[Any, ...], has_aux: bool) -> Callable[..., Any]:
    layout = Layout.of(x)

    def scalar_f(flat):
        out = f(_like(x, flat, layout), *args)
        out, aux = out if has_aux else (out, None)
        if jnp.shape(out) != ():
            raise TypeError(f"expected a function whose value is a scalar, got one of shape {jnp.shape(out)}")
        return out, aux

    return scalar_f


_FOLLOWS = "a solver with `adjoint='auto'`, which follows the mode"
_EXPLAINED = {  # what JAX and diffrax say of a mode that a function lacks: why, and what to do for one and both modes
    "forward-mode autodiff (jvp) to a custom_vjp function": (
        "this function has a reverse mode only (a custom_vjp, as of a solver's adjoint)",
        f"take `mode='reverse'`, or {_FOLLOWS}",
        f"second derivatives take both, as has {_FOLLOWS}",
    ),
    "Reverse-mode differentiation does not work": (
        "this function has a forward mode only (a while_loop with an open end)",
        f"take `mode='forward'`, or {_FOLLOWS}",
        f"second derivatives take both, as has {_FOLLOWS}",
    ),
    "Cannot reverse-mode autodifferentiate when using `diffeqsolve(..., max_steps=None": (
        "this function has a forward mode only (a solve of any number of steps, `max_steps=None`)",
        "take `mode='forward'`, or give `max_steps`",
        "second derivatives take both: give `max_steps`",
    ),
}


@contextlib.contextmanager
def _explained(second_order: bool = False) -> Iterator[None]:
    """Turns errors about a mode that a function does not have into what to do about it."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        for text, (cause, *remedies) in _EXPLAINED.items():
            if text in str(error):
                raise TypeError(f"{cause}: {remedies[second_order]}") from error
        raise


def batched_jacobian(f: Callable[[Any], Any], x: Any, *, mode: str = "auto") -> jax.Array:
    """The Jacobian of each sample: `(..., m, n)` for `x` `(..., n)` and `f(x)` `(..., m)`.

    `mode` is `"forward"`, one pass with n directions at once; `"reverse"`, with m; or `"auto"`, the cheaper one. Raises
    `ValueError` where `f` changes the leading axes, and for other modes.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> batched_jacobian(lambda x: x**2, x).tolist()
    [[[2.0, 0.0], [0.0, 4.0]], [[6.0, 0.0], [0.0, 8.0]]]
    """
    x = floating(x)
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"batched_jacobian takes the mode 'auto', 'forward' or 'reverse', got {mode!r}")
    y = jax.eval_shape(f, x)
    _require_batch(x, y.shape[:-1], y.shape)
    if mode == "auto":
        mode = "forward" if x.shape[-1] <= y.shape[-1] else "reverse"
    if mode == "forward":
        return jax.vmap(lambda v: jax.jvp(f, (x,), (v,))[1], out_axes=-1)(_directions(x))
    _, pullback = jax.vjp(f, x)
    return jax.vmap(lambda w: pullback(w)[0], out_axes=-2)(_directions(y))


def divergence(f: Callable[[Any], Any], x: Any, probe: Any = None) -> tuple[Any, Any]:
    r"""`f(x)` and, for each sample, the divergence :math:`\sum_i \partial f_i / \partial x_i`, of shape `(...)`.

    `f` keeps the shape `(..., n)`. Exact, at the cost of n directional derivatives; with a `probe` of the shape of `x`,
    Hutchinson's estimate :math:`v^T J v`, at the cost of one. Its mean is the divergence where the probe's entries are
    independent with mean 0 and variance 1: `jax.random.rademacher(key, x.shape, x.dtype)` has the least variance. A
    probe `(k, *x.shape)` gives the mean of k estimates.

    Hutchinson, Communications in Statistics 19, 1990; Grathwohl et al., "FFJORD", ICLR 2019. Raises `ValueError` where
    `f` changes the shape, and for probes of other shapes.

    >>> divergence(lambda x: x**2, jnp.array([1.0, 2.0]))
    (Array([1., 4.], dtype=float32), Array(6., dtype=float32))
    """
    x = floating(x)
    shape = jax.eval_shape(f, x).shape
    if shape != x.shape:
        raise ValueError(f"a divergence needs a function that keeps the shape {x.shape}, this one gives {shape}")
    if probe is None:
        directions, combine = _directions(x), jnp.sum
    elif jnp.shape(probe) in (x.shape, jnp.shape(probe)[:1] + x.shape):
        directions, combine = jnp.asarray(probe, x.dtype), jnp.mean
        directions = directions[None] if directions.ndim == x.ndim else directions
    else:
        raise ValueError(f"the probe of inputs {x.shape} has their shape, or (k, *that), got {jnp.shape(probe)}")
    y, push = jax.linearize(f, x)
    return y, combine(jax.vmap(lambda v: jnp.sum(widened(v * push(v)), -1))(directions), 0).astype(y.dtype)


def laplacian(f: Callable[[Any], Any], x: Any, *, axes: Sequence[int] | None = None) -> Any:
    r"""The Laplacian of each sample, :math:`\sum_i \partial^2 f / \partial x_i^2`, of the shape of `f(x)`.

    `x` is `(..., n)`; `f(x)` is `(...)` or `(..., m)`, where each of the m outputs has its own. The sum is over the
    inputs `axes`, by default all: with inputs (t, x, y), `axes=(1, 2)` leaves out the time. Raises `ValueError` where
    `f` changes the leading axes, and for axes that there are not.

    Its cost is that of n + 2 evaluations: values and first derivatives go forward through the function, and with them
    the sum of the second ones, not each by itself; there is no Hessian. See `value_gradient_laplacian`, which returns
    all three.

    >>> laplacian(lambda x: jnp.sum(x**3, -1), jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([18.,  6.], dtype=float32)
    """
    return value_gradient_laplacian(f, x, axes=axes)[2]


def value_gradient_laplacian(
    f: Callable[[Any], Any], x: Any, *, axes: Sequence[int] | None = None
) -> tuple[Any, Any, Any]:
    r"""`f(x)`, its derivatives by the inputs `axes`, `(..., len(axes))`, and its Laplacian, in one pass.

    `x` is `(..., n)`, of one sample or more; `f(x)` is `(...)`, or `(..., m)`, where derivatives are
    `(..., m, len(axes))`. Arguments, cost and errors are those of `laplacian`.

    Li et al., "A computational framework for neural network-based variational Monte Carlo with Forward Laplacian",
    Nature Machine Intelligence 6, 2024; Dangel et al., "Collapsing Taylor Mode Automatic Differentiation",
    arXiv:2505.13644.

    >>> u = lambda x: x[0] * x[1] ** 2
    >>> value_gradient_laplacian(u, jnp.array([3.0, 2.0]))
    (Array(12., dtype=float32), Array([ 4., 12.], dtype=float32), Array(6., dtype=float32))
    """
    x = floating(x)
    shape = _shape_of(f, x)
    _require_batch(x, shape[: x.ndim - 1], shape)
    directions = _directions(x) if axes is None else _directions(x)[jnp.array(_axes(x, axes), int)]
    value, first, second = second_order(f, x, directions)
    return value, jnp.moveaxis(first, 0, -1), second


def partial(f: Callable[[Any], Any], x: Any, *axes: int) -> Any:
    r"""A partial derivative of each sample, by the inputs `axes` in turn: `partial(f, x, 0, 0, 1)` is :math:`f_{xxy}`.

    `x` is `(..., n)`, `f(x)` is `(...)` or `(..., m)`, and so is the derivative. Forward mode over forward mode: one of
    order k costs at most :math:`2^k` evaluations, and what several have in common is computed once under `jax.jit`.
    Up to the fourth order that is no slower than Taylor mode, but for the gradient of a fourth derivative: see
    benchmarks/bench_laplacian.py. Raises `ValueError` where `f` changes the leading axes, and for axes that there are
    not.

    >>> u = lambda x: x[0] ** 2 * x[1] ** 3
    >>> x = jnp.array([2.0, 1.0])
    >>> partial(u, x, 1), partial(u, x, 0, 0, 1)
    (Array(12., dtype=float32), Array(6., dtype=float32))
    """
    x = floating(x)
    shape = _shape_of(f, x)
    _require_batch(x, shape[: x.ndim - 1], shape)
    for axis in _axes(x, axes):
        f = _derivative(f, axis)
    return f(x)


def _derivative(f: Callable[[Any], Any], axis: int) -> Callable[[Any], Any]:
    return lambda x: jax.jvp(f, (x,), (jnp.zeros_like(x).at[..., axis].set(1),))[1]


def _axes(x: Any, axes: Sequence[int]) -> list[int]:
    n = x.shape[-1]
    if not all(-n <= axis < n for axis in axes):
        raise ValueError(f"inputs of shape {x.shape} have the axes 0 to {n - 1} to differentiate by, got {tuple(axes)}")
    return [axis % n for axis in axes]


def _directions(x: Any) -> jax.Array:
    """The unit vectors of the last axis, each for all samples: `(n, ..., n)`."""
    n = x.shape[-1]
    unit = jnp.eye(n, dtype=x.dtype).reshape(n, *(1,) * (x.ndim - 1), n)
    return jnp.broadcast_to(unit, (n, *x.shape))


def _shape_of(f: Callable[[Any], Any], x: Any) -> tuple[int, ...]:
    """Of the value of a function of points `(..., n)`."""
    if not hasattr(x, "ndim") or isinstance(x, ComponentVector) or x.ndim == 0:
        raise ValueError(f"expected inputs that are an array (..., n), got {describe(x)}: stack them, as in x[None]")
    out = jax.eval_shape(f, x)
    if not hasattr(out, "shape") or isinstance(out, ComponentVector):
        raise TypeError(f"expected a function that returns an array (...) or (..., m), this one gives {describe(out)}")
    return out.shape


def _require_batch(x: Any, leading: tuple[Any, ...], shape: tuple[Any, ...]) -> None:
    if x.ndim == 0 or leading != x.shape[:-1]:
        raise ValueError(
            f"expected a function that keeps the leading axes {x.shape[:-1]} of inputs {x.shape}, this one gives "
            f"{shape}"
        )
