"""Differential operators of functions that work sample by sample: Jacobians, divergence, Laplacian.

`f` maps `(..., n)` to `(..., m)`, each sample along the leading axes for itself, as layers do: for a layer pass
`lambda x: layer(x, ps, st)[0]`. It is called on the whole batch. The operators are plain functions of JAX: they nest,
and stand under `jit`, `grad` and `vmap`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def batched_jacobian(f: Callable[[Any], Any], x: Any, *, mode: str = "auto") -> jax.Array:
    """The Jacobian of each sample: `(..., m, n)` for `x` `(..., n)` and `f(x)` `(..., m)`.

    `mode` is `"forward"`, one pass with n directions at once; `"reverse"`, with m; or `"auto"`, the cheaper one. Raises
    `ValueError` where `f` changes the leading axes, and for other modes.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> batched_jacobian(lambda x: x**2, x).tolist()
    [[[2.0, 0.0], [0.0, 4.0]], [[6.0, 0.0], [0.0, 8.0]]]
    """
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
    shape = jax.eval_shape(f, x).shape
    if shape != x.shape:
        raise ValueError(f"a divergence needs a function that keeps the shape {x.shape}, this one gives {shape}")
    if probe is None:
        directions, combine = _directions(x), jnp.sum
    elif probe.shape in (x.shape, probe.shape[:1] + x.shape):
        directions, combine = probe.reshape(-1, *x.shape), jnp.mean
    else:
        raise ValueError(f"the probe of inputs {x.shape} has their shape, or (k, *that), got {probe.shape}")
    y, push = jax.linearize(f, x)
    return y, combine(jax.vmap(lambda v: jnp.sum(v * push(v), -1))(directions), 0)


def laplacian(f: Callable[[Any], Any], x: Any) -> Any:
    r"""The Laplacian of each sample, :math:`\sum_i \partial^2 f / \partial x_i^2`, of the shape of `f(x)`.

    `x` is `(..., n)`; `f(x)` is `(...)` or `(..., m)`, where each of the m outputs has its own. Forward mode over
    forward mode, in n directions at once, with no Hessian in between. Raises `ValueError` where `f` changes the leading
    axes.

    >>> laplacian(lambda x: jnp.sum(x**3, -1), jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([18.,  6.], dtype=float32)
    """
    shape = jax.eval_shape(f, x).shape
    _require_batch(x, shape[: x.ndim - 1], shape)

    def second(v):
        return jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (v,))[1]

    return jnp.sum(jax.vmap(second)(_directions(x)), 0)


def _directions(x: Any) -> jax.Array:
    """The unit vectors of the last axis, each for all samples: `(n, ..., n)`."""
    n = x.shape[-1]
    unit = jnp.eye(n, dtype=x.dtype).reshape(n, *(1,) * (x.ndim - 1), n)
    return jnp.broadcast_to(unit, (n, *x.shape))


def _require_batch(x: Any, leading: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if x.ndim == 0 or leading != x.shape[:-1]:
        raise ValueError(
            f"expected a function that keeps the leading axes {x.shape[:-1]} of inputs {x.shape}, this one gives "
            f"{shape}"
        )
