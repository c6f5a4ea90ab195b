"""Priors by name: which distribution each block of a layout has, and the map from free numbers to its support."""

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import widened
from ..components import Layout
from ..components.constraints import Constrained, Constraint
from ..components.nodes import Path


def priors_of(layout: Layout, priors: Mapping[str | Path, Any]) -> tuple[Any, ...]:
    """The prior of each block of a layout, in the shape of the block where it is a distribution of NumPyro.

    Keys are patterns as for `Layout.mask`, later ones override earlier ones. Raises `KeyError` for a pattern that
    matches nothing, `ValueError` for a component without a prior, for a prior that others override wholly, and for one
    of another shape, `TypeError` for what is no distribution.
    """
    if not isinstance(priors, Mapping):
        raise TypeError(f'priors are a dict by name, {{"physics.*": dist.LogNormal(0.0, 1.0)}}, got {priors!r}')
    chosen: list[Any] = [_MISSING] * len(layout.blocks)
    for pattern, prior in priors.items():
        for leaf in layout.match(pattern):
            chosen[layout.block_of[leaf.path]] = (pattern, prior)
    for leaf, found in zip(layout.blocks, chosen, strict=True):
        if found is _MISSING:
            name = layout.name(leaf.path)
            raise ValueError(
                f"`{name}` has no prior: name it, as in priors={{..., {name!r}: dist.Normal(0.0, 1.0)}}, or let "
                "`None` stand for a flat one"
            )
    used = [found[0] for found in chosen]
    for pattern in priors:
        if pattern not in used:
            raise ValueError(f"the prior {pattern!r} is of no component, as later ones override it: put it after them")
    return tuple(_fitted(layout, leaf, prior) for leaf, (_, prior) in zip(layout.blocks, chosen, strict=True))


_MISSING = object()


def constrained_of(layout: Layout, priors: tuple[Any, ...]) -> Constrained:
    """The map from free vectors to those in the supports of the priors."""
    constraints: dict[str | Path, Constraint] = {}
    for leaf, prior in zip(layout.blocks, priors, strict=True):
        constraint = _constraint(layout.name(leaf.path), prior)
        if constraint is not None:
            constraints[leaf.path] = constraint
    return Constrained(layout, constraints)


def log_prior(prior: Any, x: jax.Array) -> jax.Array:
    """The logarithm of the density of one block, in float32 at least."""
    x = widened(x)
    if prior is None:
        return jnp.zeros((), x.dtype)
    with jax.numpy_dtype_promotion("standard"):  # the distributions of others rely on it
        return jnp.sum(jnp.asarray(prior.log_prob(x))).astype(x.dtype)


def inside(prior: Any, x: jax.Array) -> bool:
    """Whether one block lies in the support of its prior, where that is one of NumPyro's: these warn outside."""
    return not (_is_numpyro(prior) and prior.support is not None) or bool(jnp.all(prior.support(x)))


def _is_numpyro(x: Any) -> bool:
    return any(base.__module__.split(".")[0] == "numpyro" for base in type(x).__mro__)


def _fitted(layout: Layout, leaf: Any, prior: Any) -> Any:
    """A prior, checked, with the shape of its block."""
    name = layout.name(leaf.path)
    if prior is None:
        return None
    if isinstance(prior, type) or not callable(getattr(prior, "log_prob", None)):
        raise TypeError(
            f"the prior of `{name}` is a distribution with `log_prob` and `support`, such as numpyro's "
            f"dist.Normal(0.0, 1.0), or `None` for a flat one, got {prior!r}"
        )
    if _is_numpyro(prior):
        if prior.is_discrete:
            raise ValueError(f"the prior of `{name}` is discrete, {type(prior).__name__}: parameters are continuous")
        events = len(prior.event_shape)
        batch = leaf.shape[: len(leaf.shape) - events]
        try:
            if len(leaf.shape) < events or leaf.shape[len(batch) :] != tuple(prior.event_shape):
                raise ValueError
            return prior if tuple(prior.batch_shape) == batch else prior.expand(batch)
        except ValueError:
            shape = tuple(prior.batch_shape) + tuple(prior.event_shape)
            raise ValueError(
                f"the prior of `{name}` is of shape {shape}, which does not fit the component's, {leaf.shape}"
            ) from None
    else:  # one that broadcasts would count each element several times
        with jax.numpy_dtype_promotion("standard"):
            block = widened(jnp.zeros(leaf.shape, leaf.dtype))
            shape = jnp.shape(jax.eval_shape(prior.log_prob, block))
        if shape != leaf.shape[: len(shape)]:
            raise ValueError(
                f"the prior of `{name}` has a log-density of shape {shape}, which does not fit the component's shape, "
                f"{leaf.shape}"
            )
    return prior


def _constraint(name: str, prior: Any) -> Constraint | None:
    support = getattr(prior, "support", None)
    if support is None or isinstance(support, Constraint):
        return support
    if not _is_numpyro(support):
        raise TypeError(
            f"the support of the prior of `{name}` is a constraint of lux.constraints or of NumPyro, or `None` for all "
            f"numbers, got {support!r}"
        )
    distributions = importlib.import_module("numpyro.distributions")  # which made the support
    try:
        transform = distributions.biject_to(support)
    except NotImplementedError:
        raise ValueError(f"NumPyro has no map to the support of the prior of `{name}`, {support}") from None
    identity = isinstance(transform, distributions.transforms.IdentityTransform)
    return None if identity else InSupport(support, transform)


@dataclasses.dataclass(frozen=True, eq=False)
class InSupport(Constraint):
    """NumPyro's map to the support of one of its distributions."""

    support: Any
    transform: Any

    def forward(self, free: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return self.transform(free).astype(free.dtype)

    def inverse(self, x: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.where(jnp.all(self.support(x)), self.transform.inv(x), jnp.nan).astype(x.dtype)

    def log_det(self, free: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.sum(self.transform.log_abs_det_jacobian(free, self.transform(free))).astype(free.dtype)


def drawn(prior: Any, key: jax.Array, leaf: Any, name: str) -> jax.Array:
    """A draw of one block. Raises `TypeError` where its prior cannot be drawn from."""
    if not callable(getattr(prior, "sample", None)):
        kind = "a flat prior" if prior is None else f"the prior {type(prior).__name__}"
        raise TypeError(f"`{name}` has {kind}, which cannot be drawn from: it has no `sample`")
    with jax.numpy_dtype_promotion("standard"):
        x = jnp.asarray(prior.sample(key) if _is_numpyro(prior) else prior.sample(key, leaf.shape))
    if x.size != math.prod(leaf.shape):
        raise ValueError(f"the prior of `{name}` draws shape {x.shape}, where the component has {leaf.shape}")
    return x.reshape(leaf.shape).astype(np.dtype(leaf.dtype))
