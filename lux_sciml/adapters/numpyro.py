"""Parameters as sample sites of NumPyro's models, for priors whose own parameters are unknown."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _names
from .._libraries import library
from ..components import ComponentVector, Layout
from ..components.layout import as_layout
from ..components.nodes import Path
from ..core import Layer
from ..inference.priors import priors_of
from .functions import as_function

__dir__ = _names.public(__name__)


def sample(layout: Layout | ComponentVector, priors: Mapping[str | Path, Any], name: str = "") -> ComponentVector:
    """Parameters inside a NumPyro model, one sample site for each array of a layout.

    `priors` are NumPyro's distributions by name, as for `lux.inference.log_posterior`; their parameters may be sample
    sites themselves, and `None` is flat. The sites are called as the arrays, `"physics.growth"`, with `name` and a dot
    in front where one is given. Returns a ComponentVector.

    Raises `KeyError` for a pattern that matches nothing, `ValueError` for a component without a prior, `TypeError` for
    what is no distribution of NumPyro, `ImportError` without NumPyro: `pip install lux-sciml[inference]`.

    >>> import lux_sciml as lux
    >>> import numpyro, numpyro.distributions as dist  # doctest: +SKIP
    >>> layout = lux.ComponentVector(net=[0.0, 0.0], rate=1.0).layout
    >>> def model(t, y):
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     priors = {"net": dist.Normal(0.0, scale), "rate": dist.LogNormal(0.0, 1.0)}
    ...     ps = lux.adapters.numpyro.sample(layout, priors)
    ...     numpyro.sample("y", dist.Normal(ps.net @ t - ps.rate, 0.1), obs=y)
    >>> seeded = numpyro.handlers.seed(model, 0)  # doctest: +SKIP
    >>> list(numpyro.handlers.trace(seeded).get_trace(jnp.ones(2), 0.0))  # doctest: +SKIP
    ['scale', 'net', 'rate', 'y']
    """
    numpyro = library("numpyro", "lux-sciml[inference]")
    dist = importlib.import_module("numpyro.distributions")
    layout = as_layout(layout)
    blocks = []
    for leaf, prior in zip(layout.blocks, priors_of(layout, priors), strict=True):
        if prior is None:
            prior = dist.ImproperUniform(dist.constraints.real, (), leaf.shape)
        if not isinstance(prior, dist.Distribution):
            raise TypeError(f"the prior of `{layout.name(leaf.path)}` is no distribution of NumPyro, got {prior!r}")
        drawn = numpyro.sample(_site(layout, leaf.path, name), prior.to_event(len(prior.batch_shape)))
        blocks.append(jnp.asarray(drawn).astype(leaf.dtype))
    return ComponentVector(layout.join(blocks), layout)


def random_layer(
    layer: Layer, ps: Layout | ComponentVector, st: Any, priors: Mapping[str | Path, Any], name: str = ""
) -> Callable[[Any], Any]:
    """A layer with parameters drawn from priors, inside a NumPyro model: a function from its input to its output.

    `ps, st = lux.setup(key, layer)` outside of the model; of `ps` only the layout counts. The state stays as it is, in
    test mode: `lux.testmode(st)`; `ValueError` for a layer that updates it. `priors` and `name` are those of `sample`.

    >>> import lux_sciml as lux
    >>> import numpyro, numpyro.distributions as dist  # doctest: +SKIP
    >>> net = lux.Dense(2, 1)
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> def model(x, y):
    ...     f = lux.adapters.numpyro.random_layer(net, ps, st, {"*": dist.Normal(0.0, 1.0)}, "net")
    ...     numpyro.sample("y", dist.Normal(f(x), 0.1), obs=y)
    >>> seeded = numpyro.handlers.seed(model, 0)  # doctest: +SKIP
    >>> list(numpyro.handlers.trace(seeded).get_trace(jnp.ones((5, 2)), jnp.ones((5, 1))))  # doctest: +SKIP
    ['net.weight', 'net.bias', 'y']
    """
    drawn, function = sample(ps, priors, name), as_function(layer, st)
    return lambda x: function(drawn, x)


def collect(samples: Mapping[str, Any], layout: Layout | ComponentVector, name: str = "") -> ComponentVector:
    """The sites of `sample` in what `MCMC.get_samples` returns, as a batch of vectors, `(draws, n)`.

    With `group_by_chain=True`, `(chains, draws, n)`. Raises `KeyError` where a site is missing, `ValueError` for one of
    another shape.

    >>> layout = ComponentVector(a=1.0, b=[2.0, 3.0]).layout
    >>> collect({"a": jnp.zeros(10), "b": jnp.ones((10, 2))}, layout).b.shape
    (10, 2)
    """
    layout = as_layout(layout)
    blocks, lead = [], None
    for leaf in layout.blocks:
        site = _site(layout, leaf.path, name)
        if site not in samples:
            raise KeyError(f"there is no site {site!r} in the samples; there is {', '.join(samples) or 'none'}")
        x = jnp.asarray(samples[site])
        draws, shape = x.shape[: x.ndim - len(leaf.shape)], x.shape[x.ndim - len(leaf.shape) :]
        lead = draws if lead is None else lead
        if shape != leaf.shape or draws != lead:
            expected = (*lead, *leaf.shape)
            raise ValueError(f"site {site!r} should have the shape {expected}, draws of {leaf.shape}, got {x.shape}")
        blocks.append(x.reshape(*draws, leaf.size))
    with jax.numpy_dtype_promotion("standard"):
        return ComponentVector(jnp.concatenate(blocks, axis=-1), layout)


def _site(layout: Layout, path: Path, name: str) -> str:
    return ".".join(filter(None, (name, layout.name(path)))) or "value"
