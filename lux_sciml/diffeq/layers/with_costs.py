"""WithCosts: what a trajectory costs, integrated along with it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optimistix

from ...core import Layer, Wrapper
from .neural_ode import NeuralODE


def _kinetic(t: Any, y: Any, dy: Any, f: Callable, probe: Any) -> jax.Array:
    return jnp.sum(dy**2, axis=-1)


def _jacobian(t: Any, y: Any, dy: Any, f: Callable, probe: Any) -> jax.Array:
    return jnp.sum(jax.vjp(lambda y: f(t, y), y)[1](probe)[0] ** 2, axis=-1)


def _acceleration(t: Any, y: Any, dy: Any, f: Callable, probe: Any) -> jax.Array:
    return jnp.sum(jax.jvp(f, (t, y), (jnp.ones_like(t), dy))[1] ** 2, axis=-1)


_COSTS = {"kinetic": _kinetic, "jacobian": _jacobian, "acceleration": _acceleration}


class WithCosts(Wrapper):
    r"""A `NeuralODE` that returns, beside its output, what its trajectory costs: `(output, {cost: value})`.

    The costs, integrated along the same steps, are of shape `y0.shape[:-1]`, and those asked for in `costs`:

    * `"kinetic"`: :math:`\int \|f\|^2 dt`, the kinetic energy;
    * `"jacobian"`: :math:`\int \|v^T \partial f/\partial y\|^2 dt` with one Gaussian probe v a solve, whose mean is the
      squared Frobenius norm of the Jacobian;
    * `"acceleration"`: :math:`\int \|d^2 y/dt^2\|^2 dt`, the Taylor regularisation of second order.

    Finlay et al., "How to train your neural ODE", ICML 2020; Kelly et al., "Learning differential equations that are
    easy to solve", NeurIPS 2020. Parameters are the layer's; state: that of the layer, `layer`, and `key`, renewed by a
    call. Raises `ValueError` for unknown costs and for a layer that saves by `saveat`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.WithCosts(lux.NeuralODE(lux.Dense(2, 2), ts=[0.0, 1.0], output="final"), ("kinetic",))
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> (y, costs), st = node(jnp.ones((8, 2)), ps, st)
    >>> y.shape, costs["kinetic"].shape
    ((8, 2), (8,))
    """

    layer: NeuralODE
    costs: tuple[str, ...] = ("kinetic", "jacobian")

    def __post_init__(self):
        unknown = [name for name in self.costs if name not in _COSTS]
        if unknown:
            raise ValueError(f"the costs are {', '.join(map(repr, _COSTS))}, got {unknown[0]!r}")
        if self.layer.saveat is not None:
            raise ValueError("WithCosts needs the end of the trajectory: build its layer with ts, not with saveat")

    def init_state(self, key):
        layer_key, key = jax.random.split(key)
        return {"layer": self.layer.init_state(layer_key), "key": key}

    def to_child(self, ps, st):
        return ps, st["layer"]

    def from_child(self, ps, st, whole):
        return ps, {**whole, "layer": st}

    def forward(self, x, ps, st):
        y0, *rest = x if isinstance(x, tuple) else (x,)
        y0 = jnp.asarray(y0)
        key, next_key = jax.random.split(st["key"])
        start = {"y": y0, "probe": jax.random.normal(key, y0.shape, y0.dtype)}
        start["costs"] = {name: jnp.zeros(y0.shape[:-1], y0.dtype) for name in self.costs}
        field = _WithCosts(self.layer.model, self.layer.time_dependent, self.costs)
        layer = self.layer.replace(model=field, time_dependent=True, **_tolerances_of_y(self.layer))
        out, layer_st = layer.forward((start, *rest) if rest else start, ps, st["layer"])
        saved = out.ys if isinstance(out, diffrax.Solution) else out
        time_axis = 1 if layer.batching == "vmap" else 0
        costs = saved["costs"]
        if layer.output != "final":
            costs = jax.tree.map(lambda c: jnp.take(c, -1, axis=time_axis), costs)
        y = dataclasses.replace(out, ys=saved["y"]) if isinstance(out, diffrax.Solution) else saved["y"]
        return (y, costs), {"layer": layer_st, "key": next_key}


def _norm_of_y(scaled_error: Any) -> jax.Array:
    return optimistix.rms_norm(scaled_error["y"])


def _tolerances_of_y(layer: NeuralODE) -> dict[str, Any]:
    """The options by which the steps are those of the trajectory alone."""
    controller = layer.option("stepsize_controller")
    if controller is None:
        controller = diffrax.PIDController(layer.rtol, layer.atol)
    if isinstance(controller, diffrax.PIDController) and controller.norm is optimistix.rms_norm:
        controller = dataclasses.replace(controller, norm=_norm_of_y)
    default = NeuralODE(layer.model)
    return {"stepsize_controller": controller, "rtol": default.rtol, "atol": default.atol}


class _WithCosts(Wrapper):
    """The vector field on states with costs: the probe stands still."""

    model: Layer
    time_dependent: bool
    costs: tuple[str, ...]

    def forward(self, x, ps, st):
        t, state = x

        def f(t, y):
            return self.model.forward((t, y) if self.time_dependent else y, ps, st)[0]

        dy, st = self.model.forward((t, state["y"]) if self.time_dependent else state["y"], ps, st)
        costs = {name: _COSTS[name](t, state["y"], dy, f, state["probe"]) for name in self.costs}
        return {"y": dy, "probe": jnp.zeros_like(state["probe"]), "costs": costs}, st
