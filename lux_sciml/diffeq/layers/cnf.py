"""CNF: a probability density by the flow of a differential equation; flow matching, to train it without solves."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ..._tree import describe, floating
from ...core import Layer, StatefulWrapper, as_layer, field
from ...core.converters import checks_itself, choice, flag, optional, short
from ...core.parameters import parameter_tree
from ..equation import Equation, Problem, diffeqsolve, half_type, output_kind
from ..field import Field, like
from ..inputs import initial_array, initial_value
from .densities import log_normal

_FEW = 8  # features whose directional derivatives are written out: more take long to compile


class Density(NamedTuple):
    """What a `CNF` returns: for `x` of shape `(..., features)`, `z` of that shape, the others of shape `(...)`.

    `log_prob`: the logarithm of the density of `x`; `z`: the noise it comes from; `kinetic`, `jacobian`: with
    `regularize` the costs of the path between, else `None`.

    >>> import lux_sciml as lux
    >>> flow = lux.CNF(lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 2)))
    >>> density, _ = flow(jnp.ones((8, 2)), *lux.setup(jax.random.key(0), flow))
    >>> density.log_prob.shape, density.z.shape, density.kinetic
    ((8,), (8, 2), None)
    """

    log_prob: jax.Array
    z: jax.Array
    kinetic: jax.Array | None
    jacobian: jax.Array | None


@checks_itself
def _density(value: Layer) -> Layer:
    if not (isinstance(value, Layer) and hasattr(value, "log_prob") and hasattr(value, "sample")):
        raise TypeError(f"the base of a CNF is a layer with log_prob and sample, got {short(value)}")
    return value


class CNF(StatefulWrapper, Equation):
    r"""A continuous normalizing flow: :math:`dx/dt = f(t, x; p)` takes noise, N(0, I) at `t = 0`, to data at `t = 1`.

    Input `x` `(..., features)`, or the tuple `(x, condition)`; output a `Density`, by the flow backward in time:

    .. math::
        \log p(x) = \log N(z; 0, I) - \int_0^1 \mathrm{tr}\, \frac{\partial f}{\partial x}\, dt

    * `model`: the layer `f`; it is called with `(t, x)`, or `(t, x, condition)`, and returns the shape of `x`; samples
      must not depend on each other in it. `lux.diffeq.concat_time` in front of a net puts the three side by side;
    * `trace`: `"exact"`, with one directional derivative for each feature, or `"hutchinson"`, with one altogether: an
      unbiased estimate by a probe of random signs, drawn once per solve from `key` in the state, which is renewed;
    * `regularize`: the output holds, for each sample, :math:`\int \|f\|^2 dt` (`kinetic`) and :math:`\int
      \|\partial f / \partial x\|_F^2 dt` (`jacobian`, estimated with the same probe); their means, times a small
      factor, belong to the loss;
    * `base`: the density of the noise z in place of N(0, I), a layer with the methods `log_prob(z, ps, st)` and
      `sample(key, shape, ps, st)`, such as `lux.diffeq.NormalDensity(features)`, `MixtureDensity` or another `CNF`.
      Its parameters are trained too: they are `ps["base"]`, and the model's are `ps["model"]` then;
    * the options of `lux.Equation`, without `ts`, `time_dependent`, `controlled`, `output`, `saveat` and `event`.

    `layer.log_prob(x, ps, st)` is the density alone, `layer.sample(key, shape, ps, st)` draws samples of the whole
    shape `(..., features)`, `layer.transport` takes points along the flow in either direction, and
    `lux.diffeq.flow_matching` is a loss for the same layer without any solve. Parameters are the model's; state: that
    of the model, `model`, and `key`.

    Chen et al., "Neural ordinary differential equations", NeurIPS 2018; Grathwohl et al., "FFJORD", ICLR 2019; Finlay
    et al., "How to train your neural ODE", ICML 2020. Raises `ValueError` for an unknown trace, other
    shapes and options that it does not have.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> flow = lux.CNF(lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 16, jnp.tanh), lux.Dense(16, 2)))
    >>> ps, st = lux.setup(jax.random.key(0), flow)
    >>> density, st = flow(jnp.ones((8, 2)), ps, st)
    >>> density.log_prob.shape, flow.sample(jax.random.key(1), (5, 2), ps, st).shape
    ((8,), (5, 2))
    """

    takes: ClassVar = "points x"
    one_term: ClassVar = True
    beside: ClassVar = ("jumps", "base")
    lacks: ClassVar = {
        **dict.fromkeys(
            ("output", "saveat", "event", "jumps", "events"), "it goes from data to noise and returns the end"
        ),
        "time_dependent": "its model is called with (t, x) always",
        "controlled": "a condition, (x, condition), is what its model is called with too",
    }

    model: Layer = field(converter=as_layer)
    base: Layer | None = field(default=None, converter=optional(_density), kw_only=True)
    trace: str = field(default="exact", converter=choice("exact", "hutchinson"), kw_only=True)
    regularize: bool = field(default=False, converter=flag, kw_only=True)
    output: str = field(default="final", converter=output_kind, kw_only=True)

    def init_state(self, key):
        model_key, key = jax.random.split(key)
        base = {name: layer.init_state(jax.random.fold_in(key, 0)) for name, layer in self.layers_beside.items()}
        return {"model": self.model.init_state(model_key), "key": key, **base}

    def problem(self, x, ps, st):
        x, condition = _parts(x)
        key, next_key = jax.random.split(st["key"])
        probe = jax.random.rademacher(key, x.shape, x.dtype) if self.trace == "hutchinson" else None
        return Problem(x, _times(x, 1.0, 0.0), None, (condition, probe), half_type(x)), {**st, "key": next_key}

    def terms(self, fields):
        condition, probe = fields.problem.data
        return diffrax.ODETerm(_WithTrace(_Velocity(fields["model"], condition), probe, self.regularize))

    def solve(self, fields):
        x = fields.problem.y0
        zeros = jnp.zeros(x.shape[:-1], x.dtype)
        start = {"x": x, "trace": zeros} | ({"kinetic": zeros, "jacobian": zeros} if self.regularize else {})
        sol = diffeqsolve(self, self.terms(fields), start, fields)
        assert sol.ys is not None
        base = fields.get("base")
        of_base = ({}, {}) if base is None else (base.own(fields.ps), base.st)
        log_prob = self._base_log_prob(sol.ys["x"], *of_base) + sol.ys["trace"]  # the integrals run backward in time
        costs = (-sol.ys["kinetic"], -sol.ys["jacobian"]) if self.regularize else (None, None)
        return dataclasses.replace(sol, ys=Density(log_prob, sol.ys["x"], *costs))

    def first_inputs(self, fields):
        condition, _ = fields.problem.data
        return {"model": _input(fields.problem.ts[0], fields.problem.y0, condition)}

    def log_prob(self, x: Any, ps: Any, st: Any) -> jax.Array:
        """The logarithm of the density at `x`, `(..., features)`, or at `(x, condition)`: of shape `(...)`."""
        return self(x, ps, st)[0].log_prob

    def sample(self, key: jax.Array, shape: tuple[int, ...], ps: Any, st: Any, condition: Any = None) -> jax.Array:
        """Samples of the whole shape `(..., features)`, from a random key; a condition is `(..., conditions)`."""
        z = self.noise(key, shape, next((leaf.dtype for leaf in jax.tree.leaves(ps)), float), ps, st)
        return self.transport(z if condition is None else (z, condition), ps, st)

    def noise(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, ps: Any, st: Any) -> jax.Array:
        """Samples of the base density, of the whole shape `(..., features)`; of N(0, I) in the type `dtype`."""
        if self.base is None:
            return jax.random.normal(key, shape, dtype)
        base: Any = self.base
        return base.sample(key, shape, *self._of_base(parameter_tree(self, ps), st))

    def _of_base(self, ps: Any, st: Any) -> tuple[Any, Any]:
        return (ps["base"], st["base"]) if "base" in self.layers_beside else ({}, {})

    def _base_log_prob(self, z: jax.Array, ps: Any, st: Any) -> jax.Array:
        base: Any = self.base
        return log_normal(z) if base is None else base.log_prob(z, ps, st)

    def transport(self, x: Any, ps: Any, st: Any, *, reverse: bool = False) -> jax.Array:
        """Points `x`, or `(x, condition)`, from noise to data by the flow; with `reverse` from data to noise."""
        x, condition = _parts(x)

        def solve(fields):
            condition, _ = fields.problem.data
            return diffeqsolve(self, diffrax.ODETerm(_Velocity(fields["model"], condition)), fields.problem.y0, fields)

        times = _times(x, *((1.0, 0.0) if reverse else (0.0, 1.0)))
        problem = Problem(x, times, None, (condition, None), half_type(x))
        return self.solved(problem, parameter_tree(self, ps), st, solve)[0]


@checks_itself
def flow_matching(layer: CNF, x: Any, ps: Any, st: Any, *, sigma: float = 0.0) -> tuple[jax.Array, Any]:
    r"""The loss of flow matching for a `CNF` and data `x`, `(..., features)`, or `(x, condition)`; and the next state.

    .. math::
        E\, \| f(t, (1 - (1 - \sigma) t) z + t x) - (x - (1 - \sigma) z) \|^2

    over `t` in U(0, 1) and `z` in N(0, I), or from the layer's `base`, one of each for every sample, from `key` in the
    state, which is renewed.

    * `layer`, `x`, `ps`, `st`: the `CNF` and what it is called with;
    * `sigma`: the standard deviation around each data point at the end of its path.

    The norm is over features, the mean over samples. There is no solve: the model is called once, with `t` of shape
    `(..., 1)`, and may update its state.

    Lipman et al., "Flow matching for generative modeling", ICLR 2023. Raises `TypeError` for a layer that is no `CNF`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> flow = lux.CNF(lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 2)))
    >>> ps, st = lux.setup(jax.random.key(0), flow)
    >>> loss, st = flow_matching(flow, jnp.ones((8, 2)), ps, st)
    >>> loss.shape
    ()
    """
    if not isinstance(layer, CNF):
        raise TypeError(f"flow_matching is the loss of a CNF, got {short(layer)}")
    (x, condition), ps = _parts(x), parameter_tree(layer, ps)
    key_t, key_z, next_key = jax.random.split(st["key"], 3)
    t = jax.random.uniform(key_t, (*x.shape[:-1], 1), x.dtype)
    z = layer.noise(key_z, x.shape, x.dtype, ps, st)
    between = (1 - (1 - sigma) * t) * z + t * x
    velocity, model_st = layer.model.forward(_input(t, between, condition), *layer.to_child(ps, st))
    loss = jnp.mean(jnp.sum((velocity - (x - (1 - sigma) * z)) ** 2, axis=-1))
    return loss, {**st, "model": model_st, "key": next_key}


@checks_itself
def concat_time(inputs: tuple[Any, ...]) -> jax.Array:
    """Time, features and, where there is one, condition side by side: `(..., 1 + features + conditions)`.

    The input is `(t, x)` or `(t, x, condition)`, `t` a scalar or of shape `(..., 1)`. In front of a net it makes a
    model for a `CNF`, or for a `NeuralODE` with `time_dependent`. Raises `ValueError` for an input that is no such
    tuple.

    >>> import jax.numpy as jnp
    >>> concat_time((0.5, jnp.ones((2, 3)))).shape
    (2, 4)
    """
    if not (isinstance(inputs, tuple) and len(inputs) in (2, 3)):
        raise ValueError(
            f"concat_time takes (t, x) or (t, x, condition), got {describe(inputs)}: a NeuralODE calls its model so "
            "with time_dependent=True"
        )
    t, x, *condition = inputs
    x, condition = floating((x, condition))
    parts = (jnp.atleast_1d(jnp.asarray(t, x.dtype)), x, *condition)
    return jnp.concatenate([jnp.broadcast_to(part, (*x.shape[:-1], part.shape[-1])) for part in parts], axis=-1)


class _Velocity(eqx.Module):
    """`f(t, x, ps)` with the condition of a solve."""

    field: Field
    condition: Any

    def __call__(self, t, x, ps):
        return like(x, self.field.output(_input(t, x, self.condition), ps))


class _WithTrace(eqx.Module):
    """The velocity, and with it the trace of its Jacobian and the costs, for each sample."""

    velocity: _Velocity
    probe: Any
    regularize: bool = eqx.field(static=True)

    def __call__(self, t, state, ps):
        x = state["x"]
        if self.probe is None:
            dx, derivative = jax.linearize(lambda x: self.velocity(t, x, ps), x)
            columns = _columns(lambda e: derivative(jnp.broadcast_to(e, x.shape)), jnp.eye(x.shape[-1], dtype=x.dtype))
            trace, norm = jnp.einsum("i...i->...", columns), jnp.sum(columns**2, axis=(0, -1))
        else:
            dx, pull = jax.vjp(lambda x: self.velocity(t, x, ps), x)
            row = pull(self.probe)[0]
            trace, norm = jnp.sum(row * self.probe, axis=-1), jnp.sum(row**2, axis=-1)
        costs = {"kinetic": jnp.sum(dx**2, axis=-1), "jacobian": norm} if self.regularize else {}
        return {"x": dx, "trace": trace, **costs}


def _columns(derivative: Callable[[jax.Array], jax.Array], unit: jax.Array) -> jax.Array:
    """The derivatives in all directions of `unit`: `(features, ..., features)`."""
    if len(unit) > _FEW:
        return jax.vmap(derivative)(unit)
    # products of two matrices: the gradient of one product with another axis transposes and copies it on the CPU
    return jnp.stack([derivative(e) for e in unit])


def _parts(x: Any) -> tuple[jax.Array, Any]:
    """Points, and the condition or `None`."""
    if isinstance(x, tuple) and len(x) != 2:
        raise ValueError(f"a CNF takes x or the tuple (x, condition), got a tuple of {len(x)}")
    x, condition = x if isinstance(x, tuple) else (x, None)
    x, condition = initial_value("CNF", x), floating(condition)
    if jnp.ndim(jax.tree.leaves(x)[0]) == 0:
        raise ValueError("a CNF takes points of shape (..., features), got a number")
    return jnp.asarray(initial_array("CNF", x)), condition


def _input(t: Any, x: jax.Array, condition: Any) -> tuple[Any, ...]:
    return (t, x) if condition is None else (t, x, condition)


def _times(x: jax.Array, start: float, end: float) -> jax.Array:
    """The two times in the type of `x`, single precision at least."""
    return jnp.array([start, end], x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32)
