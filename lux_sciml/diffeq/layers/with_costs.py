"""WithCosts: what a trajectory costs, integrated along with it."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix

from ..._tree import rms_norm, single, squared
from ...core import StatefulWrapper, field
from ...core.converters import checks_itself, choices, short
from ..equation import Equation, Fields, diffeqsolve
from ..failure import guarded


def _squares(tree: Any) -> jax.Array:
    """The sum of squares over the features, the last axis, of all arrays, for each sample."""
    squares = [squared(x) for x in jax.tree.leaves(tree)]
    return functools.reduce(operator.add, [jnp.sum(x, axis=-1) if x.ndim else x for x in squares])


def _kinetic(t: Any, y: Any, dy: Any, f: Callable, probe: Any) -> jax.Array:
    return _squares(dy)


def _jacobian(t: Any, y: Any, dy: Any, f: Callable, probe: Any) -> jax.Array:
    return _squares(jax.vjp(lambda y: f(t, y), y)[1](probe)[0])


def _acceleration(t: Any, y: Any, dy: Any, f: Callable, probe: Any) -> jax.Array:
    return _squares(jax.jvp(f, (t, y), (jnp.ones_like(t), dy))[1])


_COSTS = {"kinetic": _kinetic, "jacobian": _jacobian, "acceleration": _acceleration}


@checks_itself
def _equation(value: Equation) -> Equation:
    if not isinstance(value, Equation):
        raise TypeError(f"WithCosts goes around an equation itself, such as a NeuralODE, got {short(value)}")
    return value


class WithCosts(StatefulWrapper):
    r"""An equation that returns, beside its output, what its trajectory costs: `(output, {cost: value})`.

    `layer` is a `NeuralODE`, or another equation of one vector field. The costs, integrated along the same steps, are
    of shape `y0.shape[:-1]` (for a tree, whose arrays share these axes, they are sums over its arrays), and those asked
    for in `costs`:

    * `"kinetic"`: :math:`\int \|f\|^2 dt`, the kinetic energy;
    * `"jacobian"`: :math:`\int \|v^T \partial f/\partial y\|^2 dt` with one Gaussian probe v a solve, whose mean is the
      squared Frobenius norm of the Jacobian;
    * `"acceleration"`: :math:`\int \|d^2 y/dt^2\|^2 dt`, the Taylor regularization of second order.

    Finlay et al., "How to train your neural ODE", ICML 2020; Kelly et al., "Learning differential equations that are
    easy to solve", NeurIPS 2020. Parameters are the layer's; state: that of the layer, `layer`, and `key`, renewed by a
    call. Raises `TypeError` for a layer that is no equation, `ValueError` for unknown costs, for a layer that saves by
    `saveat`, and for equations of several terms.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.WithCosts(lux.NeuralODE(lux.Dense(2, 2), ts=[0.0, 1.0], output="final"), ("kinetic",))
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> (y, costs), st = node(jnp.ones((8, 2)), ps, st)
    >>> y.shape, costs["kinetic"].shape
    ((8, 2), (8,))
    """

    layer: Equation = field(converter=_equation)
    costs: tuple[str, ...] = field(default=("kinetic", "jacobian"), converter=choices(*_COSTS))

    def __check_init__(self):
        layer = self.layer
        if type(layer).solve is not Equation.solve:
            raise ValueError(f"a {type(layer).__name__} is not one vector field alone, and has no costs")
        if layer.jumps is not None or layer.events:
            raise ValueError("WithCosts goes around an equation without jumps and events")
        if layer.endless:
            raise ValueError("the costs of a trajectory are up to a last time: build the layer of WithCosts with one")
        if layer.saveat is not None:
            raise ValueError("WithCosts needs the end of the trajectory: build its layer with ts, not with saveat")

    def init_state(self, key):
        layer_key, key = jax.random.split(key)
        return {"layer": self.layer.init_state(layer_key), "key": key}

    def forward(self, x, ps, st):
        layer = self.layer
        problem, layer_st = layer.problem(x, ps, st["layer"])
        key, next_key = jax.random.split(st["key"])
        probe = _random_like(key, single(problem.y0)) if "jacobian" in self.costs else None
        problem = problem._replace(data=(problem.data, probe))
        out, layer_st = layer.solved(problem, ps, layer_st, self._solve)
        saved: Any = out.ys if isinstance(out, diffrax.Solution) else out
        costs = saved["costs"]
        if layer.output != "final":
            time_axis = 1 if layer.batching == "vmap" else 0
            costs = jax.tree.map(lambda c: jnp.take(c, -1, axis=time_axis), costs)
        y = dataclasses.replace(out, ys=saved["y"]) if isinstance(out, diffrax.Solution) else saved["y"]
        return (y, costs), {"layer": layer_st, "key": next_key}

    def _solve(self, fields):
        data, probe = fields.problem.data
        y0 = fields.problem.y0
        samples = {y.shape[:-1] for y in jax.tree.leaves(y0)}
        if len(samples) > 1:
            raise ValueError(f"the arrays of a state with costs share all axes but the last, got {sorted(samples)}")
        terms = self.layer.terms(Fields(fields, fields.problem._replace(data=data), fields.ps))
        if type(terms) is not diffrax.ODETerm:
            raise ValueError(f"a {type(self.layer).__name__} is not one vector field alone, and has no costs")
        zeros = jnp.zeros(samples.pop(), jnp.finfo(jax.tree.leaves(y0)[0].dtype).dtype)
        start = {"y": y0, "costs": dict.fromkeys(self.costs, zeros)}
        term = diffrax.ODETerm(_WithCosts(terms.vector_field, probe, self.costs))
        return diffeqsolve(self.layer, term, start, fields, controller=self._controller())

    def _controller(self) -> diffrax.AbstractStepSizeController:
        """The layer's controller, by which the steps are those of the trajectory alone."""
        controller = self.layer.option("stepsize_controller")
        if controller is None:
            controller = diffrax.PIDController(self.layer.rtol, self.layer.atol)
        if isinstance(controller, diffrax.PIDController) and controller.norm is optimistix.rms_norm:
            controller = dataclasses.replace(controller, norm=_norm_of_y)
        return guarded(controller)


def _norm_of_y(scaled_error: Any) -> jax.Array:
    return rms_norm(scaled_error["y"])


def _random_like(key: jax.Array, y0: Any) -> Any:
    """Standard normal samples in the form of `y0`."""
    leaves, treedef = jax.tree.flatten(y0)
    keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
    return treedef.unflatten([jax.random.normal(k, y.shape, y.dtype) for k, y in zip(keys, leaves, strict=True)])


class _WithCosts(eqx.Module):
    """The vector field on states with costs."""

    field: Callable
    probe: Any
    costs: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, t, state, ps):
        y = state["y"]

        def f(t, y):
            return self.field(t, y, ps)

        dy = f(t, y)
        return {"y": dy, "costs": {name: _COSTS[name](t, y, dy, f, self.probe) for name in self.costs}}
