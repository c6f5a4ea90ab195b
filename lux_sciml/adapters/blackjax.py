"""BlackJAX's samplers on the free vector of a log-posterior, a ComponentVector as it is.

Each takes a `LogPosterior` of `lux.inference.log_posterior` and returns `Draws`, with names. For other samplers and
settings, BlackJAX takes the log-posterior itself, a function of one ComponentVector.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _names
from .._libraries import library
from .._tree import describe
from ..components import ComponentMatrix, ComponentVector
from ..core.converters import checks_itself, converted, count
from ..inference import Draws, LogPosterior

__dir__ = _names.public(__name__)


@checks_itself
def nuts(
    density: LogPosterior,
    start: ComponentVector,
    key: jax.Array,
    *,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    dense: bool = True,
    covariance: ComponentMatrix | None = None,
    target_acceptance: float = 0.8,
    max_depth: int = 10,
) -> Draws:
    """Draws of a posterior by the no-U-turn sampler, its step size and mass matrix adapted in windows as Stan does.

    * `start`: parameters to start from: one vector, for all chains, or a batch `(chains, n)`, such as draws of
      `pathfinder` or of a Laplace approximation.
    * `chains` run at once, by `jax.vmap`, each with its own adaptation.
    * `warmup`, `draws`: steps for the adaptation, and kept, of each chain.
    * `dense`: adapt a whole covariance of the free vector, or, with `False`, its diagonal.
    * `covariance`: one of the free vector to begin with, by name: that of a Laplace approximation in free coordinates,
      or of a pilot run.
    * `max_depth`: at most `2**max_depth` steps of the integrator for each draw.

    `stats` are `diverging`, `acceptance_rate`, `n_steps`, `tree_depth` and `energy`. Many divergent draws mean a
    posterior with narrow necks: another parametrization, or a higher `target_acceptance`, helps.

    Hoffman & Gelman, "The No-U-Turn sampler", JMLR 15, 2014; Cabezas et al., "BlackJAX", arXiv:2402.10797. Raises
    `ValueError` where the density or its gradient is not finite at a start and for counts below one, `ImportError`
    without BlackJAX: `pip install lux-sciml[inference]`.

    >>> import lux_sciml as lux
    >>> def log_likelihood(ps):
    ...     return -(ps.rate**2) / 2
    >>> ps = lux.ComponentVector(rate=1.0)
    >>> density = lux.inference.log_posterior(log_likelihood, ps, {"rate": None})
    >>> run = lux.adapters.blackjax.nuts(density, ps, jax.random.key(0), warmup=100, draws=50)  # doctest: +SKIP
    >>> run.params.rate.shape, run.stats["diverging"].any()  # doctest: +SKIP
    ((4, 50), np.False_)
    """
    blackjax = library("blackjax", "lux-sciml[inference]")
    _require_counts(density, chains=chains, warmup=warmup, draws=draws, max_depth=max_depth)
    if not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance is a probability, between 0 and 1, got {target_acceptance:g}")
    positions = _starts(density, start, chains)
    initial = None
    if covariance is not None:
        for layout in (covariance.rows, covariance.columns):
            density.free_layout.require_same(layout)
        initial = covariance.data if dense else jnp.diagonal(covariance.data)

    def nothing(*_):
        return None

    def chain(key, position):
        first, second = jax.random.split(key)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts,
            density,
            is_mass_matrix_diagonal=not dense,
            initial_inverse_mass_matrix=initial,
            target_acceptance_rate=target_acceptance,
            adaptation_info_fn=nothing,
            max_num_doublings=max_depth,
        )
        (state, parameters), _ = adaptation.run(first, position, warmup)
        kernel = blackjax.nuts(density, **parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            stats = {
                "diverging": info.is_divergent,
                "acceptance_rate": info.acceptance_rate,
                "n_steps": info.num_integration_steps,
                "tree_depth": info.num_trajectory_expansions,
                "energy": info.energy,
            }
            return state, (state.position, state.logdensity, stats)

        return jax.lax.scan(step, state, jax.random.split(second, draws))[1]

    with jax.numpy_dtype_promotion("standard"):
        free, values, stats = jax.jit(jax.vmap(chain))(jax.random.split(key, chains), positions)
    return Draws(density.params(free), np.asarray(values), jax.tree.map(np.asarray, stats))


@checks_itself
def pathfinder(
    density: LogPosterior,
    start: ComponentVector,
    key: jax.Array,
    *,
    draws: int = 1000,
    paths: int = 4,
    max_steps: int = 100,
    spread: float = 0.1,
) -> Draws:
    """Draws of a normal approximation of a posterior, the best along paths of L-BFGS towards its maximum.

    Quick, and good for starts of `nuts`; like a Laplace approximation it knows one mode. `start` is one vector of
    parameters, from which the `paths` start with normal deviations of size `spread` in free coordinates, the first with
    none; or a batch `(paths, n)`. The path with the highest evidence lower bound is kept, which `stats` has as `elbo`.

    Zhang et al., "Pathfinder: parallel quasi-Newton variational inference", JMLR 23, 2022. Raises `ValueError` where
    the density or its gradient is not finite at a start, or along all paths, `ImportError` without BlackJAX.

    >>> import lux_sciml as lux
    >>> def log_likelihood(ps):
    ...     return -(ps.rate**2) / 2
    >>> ps = lux.ComponentVector(rate=1.0)
    >>> density = lux.inference.log_posterior(log_likelihood, ps, {"rate": None})
    >>> run = lux.adapters.blackjax.pathfinder(density, ps, jax.random.key(0), draws=100)  # doctest: +SKIP
    >>> run.params.rate.shape, list(run.stats)  # doctest: +SKIP
    ((1, 100), ['elbo'])
    """
    blackjax = library("blackjax", "lux-sciml[inference]")
    _require_counts(density, draws=draws, paths=paths, max_steps=max_steps)
    key, first, last = jax.random.split(key, 3)
    positions = _starts(density, start, paths)
    if start.ndim == 1:
        noise = spread * jax.random.normal(first, positions.shape, positions.dtype)
        positions = positions + noise.at[0].set(0.0)

    def path(key, position):
        state, _ = blackjax.vi.pathfinder.approximate(key, density, position, maxiter=max_steps, ftol=1e-8)
        return state

    def best(keys, positions, key):
        states = jax.vmap(path)(keys, positions)
        elbo = jnp.where(jnp.isfinite(states.elbo), states.elbo, -jnp.inf)
        state = jax.tree.map(lambda x: x[jnp.argmax(elbo)], states)
        free, _ = blackjax.vi.pathfinder.sample(key, state, draws)
        return free, jax.vmap(density)(free), jnp.max(elbo)

    with jax.numpy_dtype_promotion("standard"):
        free, values, elbo = jax.jit(best)(jax.random.split(key, paths), positions, last)
    if not np.isfinite(elbo):
        raise ValueError(
            "pathfinder found no normal approximation with a finite evidence lower bound on any path: start nearer to "
            "the maximum, as at the result of lux.minimize, or with a smaller `spread`"
        )
    stats = {"elbo": np.full((1, draws), float(elbo))}
    return Draws(density.params(_one_chain(free)), np.asarray(values)[None], stats)


@checks_itself
def smc(
    density: LogPosterior,
    key: jax.Array,
    *,
    particles: int = 1000,
    target_ess: float = 0.5,
    moves: int = 5,
    steps: int = 10,
    max_stages: int = 100,
    start: ComponentVector | None = None,
) -> Draws:
    """Draws of a posterior by sequential Monte Carlo: particles that move from the prior to it by tempering.

    For posteriors with several modes. The likelihood counts with a power that grows from 0 to 1, in stages that leave
    an effective sample size of `target_ess` times the `particles`; after each, these are resampled and moved by
    Hamiltonian Monte Carlo, `moves` times `steps` leapfrog steps, whose mass matrix is that of the particles and whose
    step size follows the acceptance. They start as draws of the prior, or at `start`, parameters `(particles, n)` that
    are drawn from it.

    `stats` has `log_evidence`, an estimate of the logarithm of the evidence; the powers of all stages are in
    `tempering`, padded with NaN.

    Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers", JRSS B 68, 2006. Raises `ValueError` where the power
    does not reach 1 in `max_stages`, for a `target_ess` that is no share and a start of another shape, `TypeError`
    where a prior cannot be drawn from, `ImportError` without BlackJAX.

    >>> import lux_sciml as lux
    >>> import numpyro.distributions as dist  # doctest: +SKIP
    >>> def log_likelihood(ps):
    ...     return -((ps.rate - 1) ** 2) / 0.02
    >>> ps, prior = lux.ComponentVector(rate=1.0), {"rate": dist.Normal(0.0, 1.0)}  # doctest: +SKIP
    >>> density = lux.inference.log_posterior(log_likelihood, ps, prior)  # doctest: +SKIP
    >>> run = lux.adapters.blackjax.smc(density, jax.random.key(0), particles=200)  # doctest: +SKIP
    >>> run.params.rate.shape, list(run.stats)  # doctest: +SKIP
    ((1, 200), ['log_evidence', 'tempering'])
    """
    blackjax = library("blackjax", "lux-sciml[inference]")
    _require_counts(density, particles=particles, moves=moves, steps=steps, max_stages=max_stages)
    if not 0 < target_ess < 1:
        raise ValueError(f"target_ess is a share of the particles, between 0 and 1, got {target_ess:g}")
    key, first = jax.random.split(key)
    params = density.sample_prior(first, (particles,)) if start is None else start
    if not isinstance(params, ComponentVector):
        raise TypeError(f"samplers start at parameters with names, a ComponentVector, got {describe(params)}")
    if params.shape != (particles, density.layout.size):
        raise ValueError(
            f"the start is parameters ({particles}, {density.layout.size}), one vector for each particle, got shape "
            f"{params.shape}"
        )
    free = density.free(params)

    def likelihood(free):  # where it is NaN, as where a solve fails, no particle shall be
        value = density.likelihood(free)
        return jnp.where(jnp.isfinite(value), value, -1e30)

    kernel = blackjax.smc.adaptive_tempered.build_kernel(
        density.prior,
        likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        blackjax.smc.resampling.systematic,
        target_ess,
    )

    def stage(key, state, size):
        x, weights = state.particles.data, state.weights
        variance = weights @ (x - weights @ x) ** 2
        parameters = {
            "step_size": size[None],
            "inverse_mass_matrix": (variance + 1e-12)[None],
            "num_integration_steps": jnp.array([steps]),
        }
        state, info = kernel(key, state, moves, parameters)
        accepted = jnp.mean(info.update_info.acceptance_rate)
        return state, info.log_likelihood_increment, size * jnp.exp(accepted - 0.75)

    state = blackjax.smc.tempered.init(free)
    size, powers, evidence = jnp.asarray(1.0 / steps, free.dtype) * 2, [], 0.0
    with jax.numpy_dtype_promotion("standard"):
        compiled = jax.jit(stage)
        for i in range(max_stages):
            state, gained, size = compiled(jax.random.fold_in(key, i), state, size)
            evidence += float(gained)
            powers.append(float(state.tempering_param))
            if powers[-1] >= 1.0:
                break
        else:
            raise ValueError(
                f"after {max_stages} stages the likelihood counts with a power of {powers[-1]:.3g}, not 1: raise "
                "`max_stages` or `particles`, or lower `target_ess`"
            )
        state, _, _ = compiled(jax.random.fold_in(key, max_stages), state, size)  # resampled by the last weights, moved
        values = jax.jit(jax.vmap(density))(state.particles)
    tempering = np.full(particles, np.nan)
    tempering[: len(powers)] = powers[:particles]
    stats = {"log_evidence": np.full((1, particles), evidence), "tempering": tempering[None]}
    return Draws(density.params(_one_chain(state.particles)), np.asarray(values)[None], stats)


def _one_chain(free: ComponentVector) -> ComponentVector:
    return ComponentVector(free.data[None], free.layout)


def _require_counts(density: Any, **counts: Any) -> None:
    if not isinstance(density, LogPosterior):
        raise TypeError(f"the density is what lux.inference.log_posterior makes, got a {type(density).__name__}")
    for name, value in counts.items():
        converted(name, count, value)


@checks_itself
def _starts(density: LogPosterior, start: ComponentVector, count: int) -> Any:
    """Free vectors `(count, n)`, each checked."""
    if not isinstance(start, ComponentVector):
        raise TypeError(f"samplers start at parameters with names, a ComponentVector, got {describe(start)}")
    if start.ndim == 1:
        start = ComponentVector(start.data[None], start.layout)
    if len(start.data) not in (1, count):
        raise ValueError(f"the start is one vector, or one for each of {count} chains, got shape {start.shape}")
    rows = [density.start(ComponentVector(row, start.layout)) for row in start.data]
    data = jnp.stack([row.data for row in rows])
    return ComponentVector(jnp.broadcast_to(data, (count, data.shape[1])), density.free_layout)
