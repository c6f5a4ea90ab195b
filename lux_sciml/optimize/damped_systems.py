r"""The linear systems of a Levenberg-Marquardt step: :math:`\min_d |J d + r|^2 + \lambda |D d|^2`, in four ways."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

QR, CHOLESKY, DUAL, CG = SOLVERS = ("qr", "cholesky", "dual", "cg")
SMALL = 512  # parameters up to which a QR is affordable: beyond, the normal equations are five times as fast
LARGEST = 6000  # rows and columns of a matrix that is factorized
ELEMENTS = 2**27  # of a Jacobian that is stored: 1 GiB in float64


def choose(m: int, n: int) -> str:
    """The solver for m residuals of n parameters."""
    if m * n > ELEMENTS or min(m, n) > LARGEST:
        return CG
    if n <= SMALL:
        return QR
    return DUAL if m < n else CHOLESKY


def least_damping(solver: str, dtype: Any) -> float:
    """The smallest damping: the QR works on J itself, the others on its square."""
    eps = float(jnp.finfo(dtype).eps)
    return eps**1.5 if solver == QR else eps


def system(
    solver: str, jacobian: jax.Array, r: jax.Array, scale: jax.Array, damping: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The step `d` for a stored Jacobian `(m, n)`, and the function `b -> d` for other residuals than `r`.

    * `"qr"` triangularizes J and the damping together, without Q and without squaring J;
    * `"cholesky"` factorizes J'J + damping D^2, `(n, n)`;
    * `"dual"` factorizes J D^-2 J' + damping, `(m, m)`.
    """
    m, n = jacobian.shape
    if solver == QR:
        below = jnp.concatenate([jnp.diag(jnp.sqrt(damping) * scale), jnp.zeros((n, 1), r.dtype)], 1)
        both = jnp.concatenate([jnp.concatenate([jacobian, r[:, None]], 1), below])
        triangle = jnp.linalg.qr(both, mode="r")
        factor, right = triangle[:n, :n], triangle[:n, n]
        return (
            -solve_triangular(factor, right),
            lambda b: -cho_solve((factor, False), b @ jacobian),
        )
    if solver == DUAL:
        scaled = jacobian / scale
        factor = cho_factor(scaled @ scaled.T + damping * jnp.eye(m, dtype=r.dtype))

        def solve(b):
            return -(cho_solve(factor, b) @ scaled) / scale
    else:
        factor = cho_factor(jacobian.T @ jacobian + jnp.diag(damping * scale**2))

        def solve(b):
            return -cho_solve(factor, b @ jacobian)

    return solve(r), solve


def system_of_products(
    push: Callable[[jax.Array], jax.Array],
    pull: Callable[[jax.Array], jax.Array],
    r: jax.Array,
    damping: jax.Array,
    tolerance: float,
    most: int,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The same by conjugate gradients on products `push(v) = J v` and `pull(w) = J' w`, with D the identity.

    To a residual of `tolerance` relative to J'r, in at most `most` iterations.
    """

    def solve(b):
        product = lambda v: pull(push(v)) + damping * v  # noqa: E731
        return jax.scipy.sparse.linalg.cg(product, -pull(b), tol=tolerance, maxiter=most)[0]

    return solve(r), solve


def column_scales(squares: jax.Array) -> jax.Array:
    """D of the squares of column norms: none is zero."""
    largest = jnp.max(squares)
    return jnp.sqrt(jnp.where(largest > 0, jnp.maximum(squares, 1e-12 * largest), 1.0))


def check(solver: str | None, name: str = "solver") -> str | None:
    """Raises `ValueError` for an unknown solver."""
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"{name} is one of {', '.join(map(repr, SOLVERS))}, or None to choose by size, got {solver!r}")
    return solver


def is_dense(solver: str) -> bool:
    """Whether a solver needs the Jacobian's elements."""
    return solver != CG


def most_iterations(n: int) -> int:
    """Of conjugate gradients in one solve."""
    return int(np.clip(n, 1, 250))
