"""LatentSDE: a variational autoencoder of time series with a stochastic differential equation in its latent space."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._tree import is_traced, widened
from ...core import Container, Layer, as_layer, field
from ...core.container import call_child
from ...core.converters import count
from ...core.parameters import parameter_tree
from ...series import Series
from ..equation import Equation, Problem, diffeqsolve, half_type, output_kind, solver_object
from ..field import Field
from ..inputs import spread, times_and_data
from ..times import times_like
from .neural_sde import require_forward, require_steps, stochastic_terms


class LatentSDEPath(NamedTuple):
    """What a `LatentSDE` returns: reconstruction `(..., times, channels)`, and divergences from the prior `(...)`.

    `kl_start` is that of where the latent path starts, `kl_path` that of the path from there, estimated along the one
    path drawn; `kl` is their sum.

    >>> path = LatentSDEPath(xs=jnp.zeros((5, 1)), kl_start=jnp.array(0.25), kl_path=jnp.array(0.5))
    >>> float(path.kl)
    0.75
    """

    xs: jax.Array
    kl_start: jax.Array
    kl_path: jax.Array

    @property
    def kl(self) -> jax.Array:
        """The divergence of the posterior from the prior, of start and path together, `(...)`."""
        return self.kl_start + self.kl_path


class LatentSDE(Container, Equation):
    r"""An autoencoder of series: data -> context c -> a path of a stochastic equation -> data.

    With the drift h before the data, the prior, the drift f given them, the posterior, and one diagonal diffusion g:

    .. math::
        dz = h(z)\, dt + g(z)\, dW, \qquad dz = f(z, c(t))\, dt + g(z)\, dW, \qquad
        KL = E \int \tfrac12 \left\| \frac{f - h}{g} \right\|^2 dt

    and the divergence of the starts, :math:`N(m, \sigma^2)` of the posterior and a trained normal one of the prior.
    Input `(ts, xs)`, or `(ts, xs, new_ts)` to predict at other times; times `(times,)`, data `(..., times, channels)`
    with NaN for what was not observed. With `batching="vmap"` a `lux.diffeq.Series` stands for both, and may be the new
    times; the encoder is called with it. Output: a `LatentSDEPath`, of one path for each series; `lux.diffeq.elbo` of
    it is what to maximize.

    * `encoder`: from `(ts, xs)` to a context for each time, `(..., times, context)`, linear between them, or one for
      all, `(..., context)`. A `Recurrence` with `reverse` and `return_sequence` tells each time what follows;
    * `initial`: from the context at the first time to `(..., 2 latent)`, mean and log-variance of the start;
    * `posterior`: f, from the pair `(z, c)` to the shape of `z`. After the last time of the data the path follows h;
    * `prior`, `diffusion`: h and g, from `z` to its shape. No element of g may be zero;
    * `decoder`: from `(..., latent)` to `(..., channels)`;
    * `latent`: the number of features of `z`;
    * `solver`: as in `lux.NeuralSDE` it says which integral is meant, Ito's by default; the divergence is the same in
      both, since f and h are;
    * `dt0`: the size of the steps, or `stepsize_controller`, and the other options of `lux.Equation`. With
      `time_dependent` f, h and g are called with `(t, ...)`.

    `layer.sample(key, ts, shape, ps, st)` draws series from the prior. Parameters: those of the children, and `start`,
    `mean` and `log_variance` of the prior's start. State: those of the children and `key`, which draws the start and
    the Brownian path, and is renewed by a call.

    Li et al., "Scalable gradients for stochastic differential equations", AISTATS 2020, section 5. Raises `ValueError`
    for contexts and starts of other shapes, where nothing is said about the steps, and for times that do not increase.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.Recurrence(lux.GRUCell(3, 8), reverse=True, return_sequence=True)
    >>> model = lux.LatentSDE(
    ...     encoder=lux.Chain(lux.IrregularSequence(), rnn),
    ...     initial=lux.Dense(8, 4),
    ...     posterior=lux.Chain(lambda zc: jnp.concatenate(zc, -1), lux.Dense(10, 2)),
    ...     prior=lux.Dense(2, 2),
    ...     diffusion=lux.Scale(2, jax.nn.softplus),
    ...     decoder=lux.Dense(2, 1),
    ...     latent=2,
    ...     dt0=0.1,
    ... )
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> ts, xs = jnp.array([0.0, 0.3, 1.0]), jnp.ones((5, 3, 1))
    >>> path, st = model((ts, xs), ps, st)
    >>> path.xs.shape, path.kl.shape, lux.diffeq.elbo(path, xs, noise=0.1).shape
    ((5, 3, 1), (5,), ())
    >>> model.sample(jax.random.key(1), ts, (7,), ps, st).shape
    (7, 3, 1)
    """

    takes: ClassVar = "the tuple (times, data)"
    fixed_steps: ClassVar = True
    lacks: ClassVar = {
        "controlled": "its data give the context of its posterior",
        **dict.fromkeys(("saveat", "event", "jumps", "events"), "it decodes its path at the times asked for"),
    }

    encoder: Layer = field(converter=as_layer)
    initial: Layer = field(converter=as_layer)
    posterior: Layer = field(converter=as_layer)
    prior: Layer = field(converter=as_layer)
    diffusion: Layer = field(converter=as_layer)
    decoder: Layer = field(converter=as_layer)
    latent: int = field(converter=count)
    solver: Any = field(default=diffrax.Euler(), converter=solver_object, kw_only=True)
    output: str = field(default="ys", converter=output_kind, kw_only=True)

    def __check_init__(self):
        require_steps(self)
        if self.output == "final":
            raise ValueError('the output of a LatentSDE is its whole path: "ys", or "solution" with that as its `ys`')

    def init_params(self, key):
        zeros = jnp.zeros(self.latent)
        return {**super().init_params(key), "start": {"mean": zeros, "log_variance": zeros}}

    def init_state(self, key):
        return {**super().init_state(key), "key": jax.random.fold_in(key, len(self))}

    def problem(self, x, ps, st):
        x = spread(x)
        if not (isinstance(x, tuple) and len(x) in (2, 3)):
            raise ValueError("a LatentSDE takes the tuple (times, data), or (times, data, times to predict at)")
        known = x[0] if isinstance(x[0], Series) else x[:2]
        seen, xs = times_and_data(self, known)
        ts = seen if len(x) == 2 else times_like(x[2], xs, self.batching)
        if not is_traced(ts):
            require_forward(np.asarray(ts))
        key, start_key, path_key = jax.random.split(st["key"], 3)
        st = {**st, "key": key}
        context, st["encoder"] = call_child("encoder", self.encoder, known, ps, st)
        context = _at_all_times(context, xs)
        statistics, st["initial"] = call_child("initial", self.initial, context[..., 0, :], ps, st)
        expected = (*xs.shape[:-2], 2 * self.latent)
        if statistics.shape != expected:
            raise ValueError(
                f"`initial` returns means and log-variances of {self.latent} latent features, of shape {expected} "
                f"here; got {statistics.shape}"
            )
        mean, log_variance = jnp.split(widened(statistics), 2, axis=-1)
        z0 = mean + jnp.exp(log_variance / 2) * jax.random.normal(start_key, mean.shape, mean.dtype)
        kl = _divergence(mean, log_variance, **widened(ps["start"]))
        if self.batching == "vmap":
            seen = jnp.broadcast_to(seen, (len(xs), seen.shape[-1]))
        data = _Data(self._keys(path_key, z0), seen, context, kl)
        return Problem(_with_cost(z0, jnp.zeros_like(kl)), ts, None, data, half_type(xs)), st

    def solve(self, fields):
        problem = fields.problem
        first = problem.data.seen[:1]
        ts = jnp.concatenate([first, problem.ts])
        problem = problem._replace(ts=ts)
        sol = diffeqsolve(self, self._posterior(fields, problem), problem.y0, fields, ts=ts)
        assert sol.ys is not None
        xs = self._decoded(fields, sol.ys[1:, ..., :-1])
        return dataclasses.replace(sol, ys=LatentSDEPath(xs, problem.data.kl_start, sol.ys[-1, ..., -1]))

    def terms(self, fields):
        return self._posterior(fields, fields.problem)

    def first_inputs(self, fields):
        problem = fields.problem
        t, z, data = problem.ts[0], problem.y0[..., :-1], problem.data
        inputs = {name: fields[name].input(t, z) for name in ("prior", "diffusion")} | {"decoder": z[..., None, :]}
        if data.context is not None:
            inputs["posterior"] = _given(fields["posterior"], data).input(t, z)
        return inputs

    def sample(self, key: jax.Array, ts: Any, shape: tuple[int, ...], ps: Any, st: Any) -> jax.Array:
        """Series from the prior at the times `ts`, of the shape `(*shape, times, channels)`, from a random key."""
        ps = parameter_tree(self, ps)
        start, (start_key, path_key) = ps["start"], jax.random.split(key)
        mean, log_variance = widened((start["mean"], start["log_variance"]))
        z0 = mean + jnp.exp(log_variance / 2) * jax.random.normal(start_key, (*shape, self.latent), mean.dtype)
        ts = times_like(ts, z0, self.batching)
        data = _Data(self._keys(path_key, z0), None, None, None)
        problem = Problem(_with_cost(z0, jnp.zeros(shape, z0.dtype)), ts, None, data, half_type(start["mean"]))

        def solve(fields):
            problem = fields.problem._replace(data=fields.problem.data.key)
            problem = problem._replace(y0=problem.y0[..., :-1])
            terms = stochastic_terms(self, fields["prior"], fields["diffusion"].value, problem, fields.ps, True)
            sol = diffeqsolve(self, terms, problem.y0, fields)
            return dataclasses.replace(sol, ys=self._decoded(fields, sol.ys))

        out: Any = self.solved(problem, ps, st, solve)[0]
        xs: Any = out.ys if isinstance(out, diffrax.Solution) else out
        return xs

    def _keys(self, key: jax.Array, z0: jax.Array) -> jax.Array:
        return jax.random.split(key, z0.shape[:1]) if self.batching == "vmap" else key

    def _posterior(self, fields: Any, problem: Problem) -> Any:
        data = problem.data
        drift = _Posterior(_given(fields["posterior"], data), fields["prior"], fields["diffusion"].value, data.seen)
        diffusion = _OfPath(fields["diffusion"].value)
        return stochastic_terms(self, drift, diffusion, problem._replace(data=data.key), fields.ps, True)

    def _decoded(self, fields: Any, zs: Any) -> jax.Array:
        return fields["decoder"].output(jnp.moveaxis(zs, 0, -2), fields.ps)


class _Data(NamedTuple):
    """What a solve needs beside its start: the key of its Brownian path; the times of the data, their context and the
    divergence of the start, arrays, or `None` from the prior."""

    key: jax.Array
    seen: Any
    context: Any
    kl_start: Any


class _Posterior(eqx.Module):
    """The drift of the posterior, and the rate of its divergence from the prior as one more feature."""

    posterior: Field
    prior: Field
    diffusion: Callable
    seen: jax.Array

    def __call__(self, t, y, ps):
        z = y[..., :-1]
        h, g = self.prior(t, z, ps), self.diffusion(t, z, ps)
        first, last = self.seen[0], self.seen[-1]
        margin = math.sqrt(jnp.finfo(self.seen.dtype).eps) * (last - first)  # steps end there up to rounding
        f = jnp.where(t < last - margin, self.posterior(t, z, ps), h)
        return _with_cost(f, 0.5 * jnp.sum(((f - h) / g) ** 2, axis=-1))


class _OfPath(eqx.Module):
    """The diffusion of the path, none of its divergence."""

    diffusion: Callable

    def __call__(self, t, y, ps):
        g = self.diffusion(t, y[..., :-1], ps)
        return _with_cost(g, jnp.zeros(g.shape[:-1], g.dtype))


def _given(field: Field, data: _Data) -> Field:
    """The field called with the state and the context."""
    ts = data.seen
    padding = jnp.concatenate([jnp.zeros(1, ts.dtype), (jnp.diff(ts) == 0).astype(ts.dtype)])
    ts = ts + jnp.cumsum(padding) * (ts[-1] - ts[0])  # what comes after the last time is not looked at
    return dataclasses.replace(field, control=diffrax.LinearInterpolation(ts, jnp.moveaxis(data.context, -2, 0)))


def _with_cost(z: jax.Array, cost: jax.Array) -> jax.Array:
    return jnp.concatenate([z, cost[..., None]], axis=-1)


def _at_all_times(context: Any, xs: jax.Array) -> jax.Array:
    """The context, `(..., times, context)`."""
    if isinstance(context, jax.Array) and context.shape[:-1] == xs.shape[:-2]:
        context = jnp.broadcast_to(context[..., None, :], (*xs.shape[:-1], context.shape[-1]))
    if not isinstance(context, jax.Array) or context.shape[:-1] != xs.shape[:-1]:
        raise ValueError(
            f"the encoder of a LatentSDE returns a context for each time, {(*xs.shape[:-1], 'context')} here, or one "
            f"for all, got {getattr(context, 'shape', type(context).__name__)}"
        )
    return context


def _divergence(m: jax.Array, s: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL of normal distributions with means and log-variances, `N(m, exp(s))` from that of the prior."""
    return 0.5 * jnp.sum(log_variance - s + (jnp.exp(s) + (m - mean) ** 2) * jnp.exp(-log_variance) - 1, axis=-1)
