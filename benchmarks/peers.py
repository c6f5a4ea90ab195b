"""One model in three libraries, each compiled as its documentation advises: calls for its output and its gradient."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lux_sciml as lux

Calls = tuple[
    Callable[[], Any], Callable[[], Any]
]  # the output and the new state; the loss, its gradient and the state

OURS, TREE = "lux_sciml", "lux_sciml, `flat=False`"
PEERS = ("Flax NNX, `nnx.jit`", "Flax NNX, split", "Equinox, `filter_jit`", "Equinox, flat")
HEAD = (OURS, TREE, *PEERS, "ours / fastest peer")


def loss(y: jax.Array) -> jax.Array:
    return jnp.mean(y**2)


def ours(layer: lux.Layer, ps: Any, st: Any, x: jax.Array) -> Calls:
    """As in our examples; `ps` is the flat vector, or the tree of it."""

    @jax.jit
    def forward(ps, st, x):
        return layer(x, ps, st)

    def objective(ps, st, x):
        y, st = layer(x, ps, st)
        return loss(y), st

    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return lambda: forward(ps, st, x), lambda: gradient(ps, st, x)


def flax_jit(model: nnx.Module, x: jax.Array) -> Calls:
    """As in Flax's examples."""
    forward = nnx.jit(lambda model, x: model(x))
    gradient = nnx.jit(nnx.value_and_grad(lambda model, x: loss(model(x))))
    return lambda: forward(model, x), lambda: gradient(model, x)


def flax_split(model: nnx.Module, x: jax.Array) -> Calls:
    """The functional form of Flax's page on performance, where Python does not walk through the model at each call."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def forward(graphdef, state, x):
        model = nnx.merge(graphdef, state)
        return model(x), nnx.state(model, nnx.BatchStat)

    @jax.jit
    def gradient(graphdef, state, x):
        model = nnx.merge(graphdef, state)
        value_and_gradient = nnx.value_and_grad(lambda model: loss(model(x)))(model)
        return value_and_gradient, nnx.state(model, nnx.BatchStat)

    return lambda: forward(graphdef, state, x), lambda: gradient(graphdef, state, x)


def batched(model: Any, state: eqx.nn.State | None, x: jax.Array) -> tuple[jax.Array, eqx.nn.State | None]:
    """An Equinox model is one of a single sample."""
    if state is None:
        return jax.vmap(model)(x), None
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)


def objective(model: Any, state: eqx.nn.State | None, x: jax.Array) -> tuple[jax.Array, eqx.nn.State | None]:
    y, state = batched(model, state, x)
    return loss(y), state


def equinox_jit(model: Any, state: eqx.nn.State | None, x: jax.Array) -> Calls:
    """As in Equinox's examples."""
    forward = eqx.filter_jit(batched)
    gradient = eqx.filter_jit(eqx.filter_value_and_grad(objective, has_aux=True))
    return lambda: forward(model, state, x), lambda: gradient(model, state, x)


def equinox_flat(model: Any, state: eqx.nn.State | None, x: jax.Array) -> Calls:
    """The "low-overhead training loops" of Equinox's tricks: the compiled function puts the model together."""
    arrays, static = eqx.partition((model, state), eqx.is_array)
    leaves, treedef = jax.tree.flatten(arrays)

    def unflatten(leaves):
        return eqx.combine(jax.tree.unflatten(treedef, leaves), static)

    @jax.jit
    def forward(leaves, x):
        y, state = batched(*unflatten(leaves), x)
        return y, jax.tree.leaves(state)

    @jax.jit
    def gradient(leaves, x):
        value_and_state, gradient = eqx.filter_value_and_grad(objective, has_aux=True)(*unflatten(leaves), x)
        return jax.tree.leaves((value_and_state, gradient))

    return lambda: forward(leaves, x), lambda: gradient(leaves, x)


def all_calls(
    mine: tuple[lux.Layer, lux.ComponentVector, Any, jax.Array],
    flax: tuple[nnx.Module, jax.Array],
    equinox: tuple[Any, eqx.nn.State | None, jax.Array],
) -> tuple[dict[str, Callable[[], Any]], ...]:
    """The calls of all by name: first those for the output, then those for the gradient."""
    layer, ps, st, x = mine
    calls = (ours(*mine), ours(layer, ps.tree(), st, x), flax_jit(*flax), flax_split(*flax),
             equinox_jit(*equinox), equinox_flat(*equinox))  # fmt: skip
    names = (OURS, TREE, *PEERS)
    return tuple({name: pair[i] for name, pair in zip(names, calls, strict=True)} for i in range(2))


def agree(calls: dict[str, Callable[[], Any]]) -> None:
    """Raise unless the outputs of all are the same, up to the order of the axes and rounding."""
    outputs = [out[0] if isinstance(out, tuple) else out for out in (call() for call in calls.values())]
    first = np.asarray(outputs[0])
    for y in outputs[1:]:
        y = np.asarray(y) if y.shape == first.shape else np.moveaxis(np.asarray(y), 1, -1)
        np.testing.assert_allclose(y, first, rtol=1e-3, atol=1e-3)


def row(label: str, times: dict[str, float], unit: float) -> tuple[Any, ...]:
    return (label, *(t * unit for t in times.values()), times[OURS] / min(times[peer] for peer in PEERS))
