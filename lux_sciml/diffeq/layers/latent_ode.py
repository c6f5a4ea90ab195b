"""LatentODE: a variational autoencoder of time series with a differential equation in its latent space."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import diffrax
import jax
import jax.numpy as jnp

from ..._tree import describe, widened
from ...core import Container, Layer, Mode, as_layer, field
from ...series import Series
from ..equation import Equation, equation_of, half_type
from ..inputs import spread

_WHOLE_PATH = "the dynamics of a LatentODE return the path at all times: a NeuralODE with output='ys' or 'solution'"


class LatentPath(NamedTuple):
    """What a `LatentODE` returns: reconstruction `(..., times, channels)`, mean and log-variance `(..., latent)`.

    The mean and the log-variance are those of where the latent path starts. Here one is made by hand:

    >>> path = LatentPath(xs=jnp.zeros((5, 1)), mean=jnp.zeros(2), log_variance=jnp.zeros(2))
    >>> float(elbo(path, jnp.zeros((5, 1)), noise=1.0, kl_weight=0.0) / jnp.log(2 * jnp.pi))
    -2.5
    """

    xs: jax.Array
    mean: jax.Array
    log_variance: jax.Array

    @property
    def kl(self) -> jax.Array:
        """The divergence of where the path starts from N(0, 1), `(...)`."""
        spread = self.mean**2 + jnp.exp(self.log_variance) - 1 - self.log_variance
        return 0.5 * jnp.sum(spread, axis=-1)


@runtime_checkable
class Reconstruction(Protocol):
    """What `elbo` takes: a reconstruction of the data, and the divergence `kl` of the latent path from its prior."""

    @property
    def xs(self) -> jax.Array: ...
    @property
    def kl(self) -> jax.Array: ...


class LatentODE(Container):
    r"""An autoencoder: data -> :math:`z_0 \sim N(m, \sigma^2)` -> the path :math:`z(t)` from it -> data.

    Input `(ts, xs)`, or `(ts, xs, new_ts)` to predict at other times than the data's; times `(times,)`, data
    `(..., times, channels)` with NaN for what was not observed. A `lux.diffeq.Series` stands for both, `series` or
    `(series, new_ts)`, and may be the new times: the encoder is called with it, and the dynamics have
    `batching="vmap"`. The latent path starts at the first of the times asked for. Output: a `LatentPath`;
    `lux.diffeq.elbo` is what to maximize.

    * `encoder`: from `(ts, xs)` to `(..., 2 latent)`, mean and log-variance: an `ODERNN`, or a cell after
      `IrregularSequence`; reversed in time, so that it ends where the path starts;
    * `dynamics`: a `NeuralODE`, or any other equation, also in wrappers, that takes `(z0, ts)`, with its output `"ys"`
      or `"solution"`;
    * `decoder`: from `(..., latent)` to `(..., channels)`.

    State: those of the children, `key`, used in each call and renewed by it, and `mode`: in test mode `z0` is the mean.

    Chen et al., "Neural ordinary differential equations", NeurIPS 2018, section 5; Rubanova, Chen and Duvenaud, "Latent
    ODEs for irregularly-sampled time series", NeurIPS 2019. Raises `ValueError` where the encoder has an odd number of
    outputs, and for dynamics of another kind.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.ODERNN(lux.GRUCell(2, 8), lux.Dense(8, 8), reverse=True, output="final")
    >>> encoder = lux.Chain(rnn, lux.Dense(8, 6))
    >>> model = lux.LatentODE(encoder, lux.NeuralODE(lux.Dense(3, 3, jnp.tanh), output="ys"), lux.Dense(3, 1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> ts, xs = jnp.array([0.0, 0.3, 1.0]), jnp.ones((5, 3, 1))
    >>> path, st = model((ts, xs), ps, st)
    >>> path.xs.shape, lux.diffeq.elbo(path, xs, noise=0.1).shape
    ((5, 3, 1), ())
    """

    encoder: Layer = field(converter=as_layer)
    dynamics: Layer = field(converter=as_layer)
    decoder: Layer = field(converter=as_layer)

    def __check_init__(self):
        equation = equation_of(self.dynamics)
        if equation is not None and equation.takes != Equation.takes:
            raise ValueError(f"the dynamics of a LatentODE take (z0, times), and a {type(equation).__name__} takes "
                             f"{equation.takes}")  # fmt: skip
        if equation is not None and (equation.ts is not None or equation.controlled):
            raise ValueError("the dynamics of a LatentODE take (z0, times): build them without `ts` and `controlled`")
        if equation is not None and equation.output == "final":
            raise ValueError(f'{_WHOLE_PATH}; got output="final"')

    def init_state(self, key):
        return {**super().init_state(key), "key": jax.random.fold_in(key, len(self)), "mode": Mode.TRAIN}

    def forward(self, x, ps, st):
        equation = equation_of(self.dynamics)
        x = spread(x)
        if not (isinstance(x, tuple) and len(x) in (2, 3)):
            raise ValueError("a LatentODE takes the tuple (times, data), or (times, data, times to predict at)")
        (statistics,), st = self.run(ps, st, encoder=x[0] if isinstance(x[0], Series) else x[:2])
        if statistics.shape[-1] % 2:
            raise ValueError(f"the encoder returns means and log-variances, an even number; got {statistics.shape[-1]}")
        mean, log_variance = jnp.split(statistics, 2, axis=-1)
        z0 = mean
        if st["mode"] is Mode.TRAIN:
            key, st["key"] = jax.random.split(st["key"])
            z0 = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)
        times = x[-1] if len(x) == 3 else x[0]
        (zs,), st = self.run(ps, st, dynamics=(z0, times))
        zs = zs.ys if isinstance(zs, diffrax.Solution) else zs
        count = jnp.shape(times.times if isinstance(times, Series) else times)[-1]
        separate = equation is not None and equation.batching == "vmap"
        expected = (z0.shape[0], count, *z0.shape[1:-1]) if separate else (count, *z0.shape[:-1])
        if not isinstance(zs, jax.Array) or zs.shape[:-1] != expected:
            raise ValueError(f"{_WHOLE_PATH}; got {describe(zs)} for {count} times and a start of shape {z0.shape}")
        zs = jnp.moveaxis(zs, 1 if separate else 0, -2)
        (xs,), st = self.run(ps, st, decoder=zs)
        return LatentPath(xs, mean, log_variance), st


def elbo(path: Reconstruction, xs: jax.Array | Series, *, noise: Any, kl_weight: Any = 1.0) -> jax.Array:
    r"""The evidence lower bound of the data under a `LatentODE` or a `LatentSDE`, averaged over the batch.

    .. math::
        \log N(x; \hat{x}, \mathrm{noise}^2) - w\, KL(q\, \|\, p)

    of the latent path's distributions given the data and before them, for a `LatentODE` :math:`N(m, \sigma^2)` and N(0,
    1); summed over times and channels, without those that are NaN, and over the latent space: to be maximized. `xs`
    has the shape of `path.xs`, or is a `lux.diffeq.Series`, and `noise` is a standard deviation that broadcasts to it,
    both real whatever the type of the data; `kl_weight`, the `w`, may grow in training.

    Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014. Raises `ValueError` for data of another shape.

    >>> import jax.numpy as jnp
    >>> path = LatentPath(xs=jnp.zeros((3, 1)), mean=jnp.zeros(2), log_variance=jnp.zeros(2))
    >>> bound = elbo(path, jnp.array([[1.0], [jnp.nan], [-1.0]]), noise=1.0)
    >>> bool(jnp.isclose(bound, -1 - jnp.log(2 * jnp.pi)))
    True
    """
    data: jax.Array = xs.data if isinstance(xs, Series) else xs
    if data.shape != path.xs.shape:
        raise ValueError(f"the data has the shape of the reconstruction, {path.xs.shape}, got {data.shape}")
    half = half_type(path.xs)
    path, data = widened(path), widened(data)
    missing, noise = jnp.isnan(data), jnp.asarray(noise, data.dtype)
    scaled = jnp.where(missing, 0, jnp.where(missing, 0, data) - path.xs) / noise
    log_density = -0.5 * (scaled**2 + jnp.log(2 * jnp.pi * noise**2))
    likelihood = jnp.sum(jnp.where(missing, 0, log_density), axis=(-2, -1))
    bound = jnp.mean(likelihood - kl_weight * path.kl)
    return bound if half is None else bound.astype(half)
