"""Log-densities of posteriors as functions of one free vector, for samplers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, widened
from ..components import ComponentVector, Layout
from ..components.constraints import Constrained
from ..components.layout import as_layout
from ..components.nodes import Path
from ..core.converters import checks_itself
from ..optimize.problem import called
from .priors import constrained_of, drawn, inside, log_prior, priors_of


@dataclasses.dataclass(frozen=True, eq=False)
class LogPosterior:
    """The log-density of a posterior over free vectors; `log_posterior` makes it.

    Called with a free vector it returns one number, `prior(free) + likelihood(free)`, up to a constant. `layout` is
    that of the parameters, `free_layout` that of the free vectors, where the components have their names too. A pure
    function of JAX: samplers take it and its gradient as they are.

    >>> density = log_posterior(lambda p: -(p.rate**2), ComponentVector(rate=1.0), {"rate": None})
    >>> jax.value_and_grad(density)(density.start(ComponentVector(rate=2.0)))
    (Array(-4., dtype=float32), ComponentVector(rate=-4))
    """

    log_likelihood: Callable[[ComponentVector], Any]
    priors: tuple[Any, ...]  # one for each block
    constrained: Constrained

    @property
    def layout(self) -> Layout:
        return self.constrained.layout

    @property
    def free_layout(self) -> Layout:
        return self.constrained.free_layout

    def __call__(self, free: ComponentVector) -> jax.Array:
        prior = self.prior(free)
        return prior + self.likelihood(free).astype(prior.dtype)

    def prior(self, free: ComponentVector) -> jax.Array:
        """The log-density of the prior over free vectors: with the log-determinant of the map to the parameters."""
        volume = widened(self.constrained.log_det(free))
        return self.log_prior(self.params(free)).astype(volume.dtype) + volume

    def likelihood(self, free: ComponentVector) -> jax.Array:
        """The log-likelihood at a free vector, in float32 at least."""
        value = called("log-likelihood", self.log_likelihood, ["ps"], self.params(free))
        if jnp.shape(value) != ():
            raise ValueError(f"the log-likelihood is one number, got shape {jnp.shape(value)}: sum it over the data")
        return widened(jnp.asarray(value))

    def log_prior(self, ps: ComponentVector) -> jax.Array:
        """The log-density of the prior over parameters, in float32 at least."""
        blocks = self.layout.split(ps)
        return sum(self._each(blocks), start=widened(jnp.zeros((), ps.dtype)))

    def _each(self, blocks: list[jax.Array]) -> list[jax.Array]:
        return [log_prior(prior, x).astype(widened(x).dtype) for prior, x in zip(self.priors, blocks, strict=True)]

    def params(self, free: ComponentVector) -> ComponentVector:
        """The parameters of a free vector; of a batch `(..., n)` of them a batch."""
        return _over_batch(self.constrained.forward, free, self.free_layout)

    def free(self, ps: ComponentVector) -> ComponentVector:
        """The free vector of parameters, or of a batch of them; NaN where they are outside of the prior's support."""
        return _over_batch(self.constrained.inverse, ps, self.layout)

    def sample_prior(self, key: jax.Array, shape: tuple[int, ...] = ()) -> ComponentVector:
        """Parameters drawn from the prior, a batch `(*shape, n)`; `TypeError` where a prior cannot be drawn from."""

        def one(key):
            keys = jax.random.split(key, max(len(self.priors), 1))
            triples = zip(self.priors, keys, self.layout.blocks, strict=False)
            blocks = [drawn(prior, key, leaf, self.layout.name(leaf.path)) for prior, key, leaf in triples]
            return ComponentVector(self.layout.join(blocks), self.layout)

        for _ in shape:
            one = jax.vmap(one)
        return one(jax.random.split(key, shape) if shape else key)

    def start(self, ps: ComponentVector) -> ComponentVector:
        """The free vector of parameters to start a sampler from, checked.

        Raises `ValueError` where the density is not finite there, naming what makes it so, or its gradient.
        """
        self.layout.require_same(ps.layout)
        for leaf, prior, x in zip(self.layout.blocks, self.priors, self.layout.split(ps), strict=True):
            value = float(log_prior(prior, x)) if inside(prior, x) else -np.inf
            if not np.isfinite(value):
                raise ValueError(
                    f"the log-density of the prior of `{self.layout.name(leaf.path)}` is {value} at the start, at "
                    f"{np.array2string(np.asarray(x), precision=4, threshold=4)}: start inside of its support"
                )
        free = self.free(ps)
        self._require_finite(free)
        return free

    def _require_finite(self, free: ComponentVector) -> None:
        """Raise `ValueError` where the density, or its gradient, is not finite at a free vector."""
        wrong = np.flatnonzero(~np.isfinite(np.asarray(free.data)))
        if wrong.size:
            label = self.free_layout.label(int(wrong[0]))
            raise ValueError(
                f"`{label}` of the free vector is {float(free.data[wrong[0]])} at the start: start with parameters "
                "that are finite and inside of the support of their prior, not on its edge"
            )
        for name, part in (("prior", self.prior), ("likelihood", self.likelihood)):
            value, gradient = jax.value_and_grad(part)(free)
            if not np.isfinite(value):
                raise ValueError(
                    f"the log-density of the {name} is {float(value)} at the start, and a sampler does not move from "
                    "there: start where it is finite, as at the result of lux.minimize"
                )
            wrong = np.flatnonzero(~np.isfinite(np.asarray(gradient.data)))
            if wrong.size:
                label = self.free_layout.label(int(wrong[0]))
                raise ValueError(
                    f"the derivative of the log-density of the {name} by `{label}` is {float(gradient.data[wrong[0]])} "
                    "at the start, where its value is finite: look for roots, norms and powers at zero, and for "
                    "`jnp.where` whose branch that is not taken is not finite"
                )


def _over_batch(function: Callable[[Any], Any], vectors: ComponentVector, layout: Layout) -> ComponentVector:
    layout.require_same(vectors.layout)
    for _ in vectors.shape[:-1]:
        function = jax.vmap(function)
    return function(vectors)


@checks_itself
def log_posterior(
    log_likelihood: Callable[[ComponentVector], Any], ps: Layout | ComponentVector, priors: Mapping[str | Path, Any]
) -> LogPosterior:
    r"""The log-density of a posterior over free vectors u of parameters p(u).

    It is :math:`\log L(p(u)) + \log \pi(p(u)) + \log |\partial p / \partial u|`.

    * `log_likelihood(ps)` returns one number; of a loss that is a negative log-likelihood, `lambda ps: -loss(ps)`. It
      may be NaN or -inf, as where a solve fails: samplers reject such points.
    * `ps`: parameters, or their layout.
    * `priors`: by name, patterns as for `Layout.mask`, later ones overriding earlier ones: `{"*": dist.Normal(0.0,
      1.0), "physics.*": dist.LogNormal(0.0, 1.0)}`. Every component needs one. A prior is a distribution of NumPyro,
      elementwise or of the component's shape; any object with `log_prob(x)`, summed over the component, and `support`,
      a constraint of `lux.constraints` or `None`; or `None`, flat over all numbers.

    Samplers move in all of :math:`R^n`: parameters are mapped from there to the supports of their priors, positive ones
    by exp, intervals by the logistic function, and the density is that of the free vector. Priors whose parameters are
    unknown too are for NumPyro: `lux.adapters.numpyro.sample`.

    Raises `KeyError` for a pattern that matches nothing, `ValueError` for a component without a prior, for a prior that
    others override wholly and for one of another shape, `TypeError` for what is no distribution.

    >>> import lux_sciml as lux
    >>> class Exponential:
    ...     support = lux.constraints.Positive(exponential=True)
    ...
    ...     def log_prob(self, x):
    ...         return -x
    >>> density = log_posterior(lambda p: -(p.rate**2), lux.ComponentVector(rate=1.0), {"rate": Exponential()})
    >>> free = density.start(lux.ComponentVector(rate=2.0))
    >>> float(density(free)), float(-4 - 2 + free.rate)
    (-5.3068528175354, -5.3068528175354)
    """
    if not callable(log_likelihood):
        raise TypeError(
            f"the log-likelihood is a function of the parameters, not its value, got {describe(log_likelihood)}"
        )
    layout = as_layout(ps)
    chosen = priors_of(layout, priors)
    return LogPosterior(log_likelihood, chosen, constrained_of(layout, chosen))
