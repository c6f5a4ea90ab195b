"""Collocation: values and derivatives of noisy data by local regression, to start training without any solve."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._tree import floating, widened
from ..times import save_times


def collocate(
    data: Any, ts: Any, *, kernel: str | Callable = "triangular", bandwidth: float | None = None, at: Any = None
) -> tuple[jax.Array, jax.Array]:
    r"""Smoothed values and derivatives of `data`, of shape `(times, ...)`, at the times `ts`: `us, dus`.

    The values are those of local linear, the derivatives those of local quadratic regressions, exact for data on lines
    and parabolas, with the weights :math:`K((t_i - t) / h)`. A vector field fitted to them,
    `jnp.mean((model(us, ps, st)[0] - dus) ** 2)`, is a first guess for a neural ODE that needs no solve.

    * `data`, `ts`: the data, `(times, ...)`, and their times, `(times,)`.
    * `kernel`: K, a function of one array, or `"epanechnikov"`, `"uniform"`, `"triangular"`, `"quartic"`,
      `"triweight"`, `"tricube"`, `"cosine"`, which vanish beyond distance one, or `"gaussian"`, `"logistic"`,
      `"sigmoid"`, `"silverman"`, which do not.
    * `bandwidth`: h as a fraction of the whole time span, by default :math:`n^{-2/7} (\ln n)^{-1/16}` for n times.
    * `at`: other times to estimate at.

    The result is linear in the data, and so differentiable. A datum that is NaN makes NaN where it has weight only.

    Liang, Wu, "Parameter estimation for differential equation models using a framework of measurement error in
    regression models", JASA 103, 2008; Roesch, Rackauckas, Stumpf, "Collocation based training of neural ordinary
    differential equations", 2021. Raises `ValueError` where fewer than three data have weight at some time, and for
    unknown kernels and unequal lengths.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> ts = jnp.linspace(0.0, 1.0, 11)
    >>> us, dus = lux.diffeq.collocate(3 * ts, ts)
    >>> bool(jnp.allclose(us, 3 * ts, atol=1e-4)), bool(jnp.allclose(dus, 3.0, atol=1e-3))
    (True, True)
    """
    if isinstance(kernel, str) and kernel not in KERNELS:
        raise ValueError(f"the kernel is one of {', '.join(KERNELS)}, or a function; got {kernel!r}")
    weigh = KERNELS[kernel] if isinstance(kernel, str) else kernel
    times = np.asarray(save_times(ts), float)
    data = floating(data)
    wide = widened(data)
    if data.shape[:1] != times.shape:
        raise ValueError(f"data have shape (times, ...), with {len(times)} times; got {data.shape}")
    n = len(times)
    part = n ** (-2 / 7) * np.log(n) ** (-1 / 16) if bandwidth is None else bandwidth
    centers = times if at is None else np.atleast_1d(np.asarray(at, float))
    h = float(part * abs(times[-1] - times[0]))
    distances = (times - centers[:, None]) / h
    weights = np.abs(np.asarray(weigh(distances)))
    least = np.sqrt(jnp.finfo(wide.dtype).eps) * weights.max(axis=1, initial=0, keepdims=True)
    few = np.sum(weights > least, axis=1) < 3  # what has less weight, as at the edge of a kernel, is lost in rounding
    if few.any():
        raise ValueError(
            f"fewer than three data have weight at the time {centers[np.argmax(few)]}: take a larger bandwidth than "
            f"{part:.3g}"
        )
    shape = (len(centers), *data.shape[1:])
    s, flat = jnp.asarray(distances, wide.dtype), wide.reshape(n, math.prod(shape[1:]))
    us, dus = _local_fit(s, weigh(s), flat, 1)[:, 0], _local_fit(s, weigh(s), flat, 2)[:, 1] / h
    return us.reshape(shape).astype(data.dtype), dus.reshape(shape).astype(data.dtype)


def _local_fit(s: jax.Array, weights: jax.Array, y: jax.Array, degree: int) -> jax.Array:
    """The coefficients `(centers, degree + 1, features)` of weighted least squares around each center."""
    powers = jnp.stack([s**k for k in range(degree + 1)], -1)
    normal = jnp.einsum("ctp,ct,ctq->cpq", powers, weights, powers)
    bad = ~jnp.isfinite(y)  # as zeros, since weights of zero do not stop NaN
    seen = (weights != 0).astype(y.dtype) @ bad.astype(y.dtype) > 0
    fit = jnp.linalg.solve(normal, jnp.einsum("ctp,ct,tf->cpf", powers, weights, jnp.where(bad, 0, y)))
    return jnp.where(seen[:, None], jnp.nan, fit)


def _inside(x: Any, value: Any) -> Any:
    return jnp.where(jnp.abs(x) <= 1, value, 0)


KERNELS: dict[str, Callable[[Any], Any]] = {
    "epanechnikov": lambda x: _inside(x, 3 / 4 * (1 - x**2)),
    "uniform": lambda x: _inside(x, 1 / 2 + 0 * x),
    "triangular": lambda x: _inside(x, 1 - jnp.abs(x)),
    "quartic": lambda x: _inside(x, 15 / 16 * (1 - x**2) ** 2),
    "triweight": lambda x: _inside(x, 35 / 32 * (1 - x**2) ** 3),
    "tricube": lambda x: _inside(x, 70 / 81 * (1 - jnp.abs(x) ** 3) ** 3),
    "gaussian": lambda x: jnp.exp(-(x**2) / 2) / math.sqrt(2 * np.pi),
    "cosine": lambda x: _inside(x, np.pi / 4 * jnp.cos(np.pi / 2 * x)),
    "logistic": lambda x: 1 / (jnp.exp(x) + 2 + jnp.exp(-x)),
    "sigmoid": lambda x: 2 / np.pi / (jnp.exp(x) + jnp.exp(-x)),
    "silverman": lambda x: jnp.exp(-jnp.abs(x) / math.sqrt(2)) * jnp.sin(jnp.abs(x) / math.sqrt(2) + np.pi / 4) / 2,
}
