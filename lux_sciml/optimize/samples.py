"""Points to evaluate a residual or a loss at: evenly over a box, and where a residual is large."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._tree import floating, is_traced, widened
from ..components import ComponentVector
from ..core.converters import checks_itself, converted, count, integer
from ..core.setup import as_key


@checks_itself
def sobol_samples(key: Any, n: int, lower: Any, upper: Any) -> Any:
    """Draw n points `(n, d)` evenly over a box: scrambled Sobol points, each uniform, together without gaps.

    `lower` and `upper` are the sides of the box: arrays `(d,)`, numbers beside such, or ComponentVectors; points are
    then a batch of vectors, as for `starts=` of `minimize`. Powers of two are most even. The mean of a smooth function
    over n such points is much nearer to its integral than over n independent ones: an error of nearly 1/n, not
    1/sqrt(n). Raises `ValueError` for sides that are not finite, of different layouts or the wrong way round,
    `TypeError` inside of `jax.jit`.

    Sobol, USSR Computational Mathematics and Mathematical Physics 7, 1967; Owen, "Scrambling Sobol' and
    Niederreiter-Xing points", Journal of Complexity 14, 1998.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> x = lux.sobol_samples(jax.random.key(0), 64, jnp.array([0.0, -1.0]), jnp.array([1.0, 1.0]))
    >>> x.shape, bool(jnp.abs(jnp.mean(x[:, 0]) - 0.5) < 0.01)
    ((64, 2), True)
    """
    from scipy.stats import qmc

    if any(map(is_traced, jax.tree.leaves((key, lower, upper)))):
        raise TypeError("sobol_samples runs outside of jax.jit, grad and vmap: draw the points before")
    key, n = as_key(key), converted("n", count, n)
    layout = next((side.layout for side in (lower, upper) if isinstance(side, ComponentVector)), None)
    for side in (lower, upper):
        if layout is not None and isinstance(side, ComponentVector):
            layout.require_same(side.layout)
    arrays = [side.data if isinstance(side, ComponentVector) else jnp.asarray(side) for side in (lower, upper)]
    sides = floating(arrays)
    dtype = next((side.dtype for side in sides if side.ndim), None)
    low, high = np.broadcast_arrays(*(np.asarray(side, np.float64) for side in sides))
    if low.ndim != 1 or not low.size:
        raise ValueError(f"the sides of a box have the shape (d,), got {sides[0].shape} and {sides[1].shape}")
    wrong = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low <= high)))
    if wrong.size:
        i = wrong[0]
        name = f"`{layout.labels()[i]}`" if layout is not None else f"side {i}"
        raise ValueError(f"a box goes from finite lower to upper sides, {name} from {low[i]:g} to {high[i]:g}")
    seed = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    unit = qmc.Sobol(low.size, rng=seed).random_base2((n - 1).bit_length())[:n]
    points = jnp.asarray(np.clip(low + unit * (high - low), low, high), dtype)
    return points if layout is None else ComponentVector(points, layout)


@checks_itself
def adaptive_samples(
    key: Any,
    candidates: Any,
    residuals: Float[Array, "n ..."],
    n: int,
    *,
    power: float = 1.0,
    uniform: float = 1.0,
) -> Any:
    r"""Choose n of many candidates, more of them where a residual is large: residual-based adaptive sampling.

    Without replacement, with a probability proportional to :math:`|r|^k / \mathrm{mean}(|r|^k) + c`.

    * `candidates`: a pytree of arrays with the same leading axis: many more points than n, spread evenly;
    * `residuals`: the residual at each, `(candidates,)`, or `(candidates, ...)`, whose norm counts;
    * `power`: k, how strongly large residuals attract; `uniform`: c, how many points stay where there are none. The
      defaults are the paper's; stiff solutions with fronts like `power=2, uniform=0`.

    Runs inside of `jax.jit` too. Residuals that are not finite attract no points. Wu, Zhu, Tan, Kartha and Lu, "A
    comprehensive study of non-adaptive and residual-based adaptive sampling for physics-informed neural networks",
    Computer Methods in Applied Mechanics and Engineering 403, 2023 (RAD). Raises `ValueError` for fewer candidates than
    n and for other shapes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> x = jnp.linspace(0.0, 1.0, 1001)
    >>> chosen = lux.adaptive_samples(jax.random.key(0), x, jnp.exp(-1e3 * (x - 0.5) ** 2), 100, uniform=0.1)
    >>> chosen.shape, bool(jnp.mean(jnp.abs(chosen - 0.5) < 0.1) > 0.7)
    ((100,), True)
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(candidates)}
    if sizes != {residuals.shape[:1]} or residuals.ndim == 0:
        raise ValueError(
            f"candidates and residuals have one leading axis, got {sorted(sizes)} and residuals {residuals.shape}"
        )
    key, total, n = as_key(key), residuals.shape[0], converted("n", integer, n)
    if not 1 <= n <= total:
        raise ValueError(f"n points of {total} candidates: expected from 1 to {total}, got {n}")
    size = jnp.linalg.norm(widened(residuals).reshape(total, math.prod(residuals.shape[1:])), axis=-1)
    size = jnp.where(jnp.isfinite(size), size, 0.0)
    attraction = (size / jnp.maximum(jnp.max(size), jnp.finfo(size.dtype).tiny)) ** power
    mean = jnp.mean(attraction)
    weights = jnp.where(mean > 0, attraction / jnp.where(mean > 0, mean, 1.0), 1.0) + uniform
    chosen = jax.lax.top_k(jnp.log(weights) + jax.random.gumbel(key, weights.shape, weights.dtype), n)[1]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], candidates)
