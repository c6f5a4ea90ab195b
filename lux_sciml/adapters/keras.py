"""Keras 3, on its JAX backend: a model as a layer, by its `stateless_call`."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._libraries import library
from ..components.nodes import Path, nest, path_string
from ..core import Constant, field
from ..core.converters import checks_itself
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree
from ..parameters.paths import value_at
from .adapted import Adapted, mode_arguments
from .template import as_arrays


class KerasLayer(Adapted):
    """What `from_keras` makes. Fields: `model`, the paths of its variables, without those of seeds, and the options."""

    model: Any
    parameters: tuple[Path, ...]
    others: tuple[Path | None, ...]
    initial: Constant = field(converter=Constant)

    def init_arguments(self):
        return {"model": f"<{type(self.model).__name__}>"}

    def init_params(self, key):
        return as_arrays(self.initial.value)["ps"]

    def init_state(self, key):
        return as_arrays(self.initial.value)["st"] | self.switches(key)

    def forward(self, x, ps, st):
        key, after = self.keys(st)
        given = [
            _seed(key, i) if path is None else value_at(st["variables"], path) for i, path in enumerate(self.others)
        ]
        weights = [value_at(ps, path) for path in self.parameters]
        y, new = self.model.stateless_call(weights, given, *self.inputs(x), **self.switched(st))
        pairs = list(zip(self.others, given, new, strict=True))
        if any(path is None and a is not b for path, a, b in pairs):  # the key was used
            st = after
        kept = [(path, b.astype(a.dtype) if b.dtype != a.dtype else b) for path, a, b in pairs if path is not None]
        return y, {**st, "variables": nest(kept)} if kept else st


@checks_itself
def from_keras(model: Any, *, spread: bool = False) -> KerasLayer:
    """A Keras model or layer that is built as a layer: `y, st = layer(x, ps, st)` is `model(x)`.

    It needs Keras's JAX backend: set the environment variable `KERAS_BACKEND=jax` before Keras is imported. `spread`
    gives a tuple that comes in as several arguments.

    Parameters: the trainable variables by their paths, `dense.kernel`, which start as they are in the model, for every
    key. State, where there is any: `variables`, all others, such as moving statistics; `key`, from which the seeds of
    random layers come; and `mode`, the argument `training` of the call, if it has one. It computes in the model's own
    types, by its policy; penalties of its regularizers are not in the output.

    Raises `TypeError` for what is no Keras layer, `ValueError` for another backend, for a model that is not built, for
    one without trainable variables and for two variables of one path, `ImportError` without Keras, which comes with
    `pip install lux-sciml[adapters]`.

    >>> import lux_sciml as lux
    >>> import keras  # doctest: +SKIP
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])  # doctest: +SKIP
    >>> lux.setup(jax.random.key(0), lux.adapters.from_keras(model))[0].dense.kernel.shape  # doctest: +SKIP
    (2, 3)
    """
    keras = library("keras")
    if not isinstance(model, keras.Layer):
        raise TypeError(f"from_keras takes a model or a layer of Keras, got a {type(model).__name__}")
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras computes by {keras.backend.backend()} here: set the environment variable KERAS_BACKEND=jax before "
            "Keras is imported"
        )
    if not model.built:
        raise ValueError(f"the {type(model).__name__} is not built: give it an Input, or call it once")
    if not model.trainable_variables:
        raise ValueError(
            f"the {type(model).__name__} has no trainable variables: `lux.Lambda(lambda x: model(x))` is a layer"
        )
    seeds = [variable.name == "seed_generator_state" for variable in model.non_trainable_variables]
    others = [v for v, is_seed in zip(model.non_trainable_variables, seeds, strict=True) if not is_seed]
    paths = _paths([*model.trainable_variables, *others])
    train, test = mode_arguments(model.call, None, None)
    count = len(model.trainable_variables)
    parameters, rest = paths[:count], iter(paths[count:])
    st = nest((path, v.value) for path, v in zip(paths[count:], others, strict=True))
    ps = nest((path, v.value) for path, v in zip(parameters, model.trainable_variables, strict=True))
    return KerasLayer(
        model,
        tuple(parameters),
        tuple(None if is_seed else next(rest) for is_seed in seeds),
        Constant({"ps": ps, "st": {"variables": st} if others else {}}),
        spread=spread,
        random=any(seeds),
        has_modes=bool(seeds),
        train=train,
        test=test,
    )


@checks_itself
def to_keras(layer: KerasLayer, ps: Parameters, st: State) -> Any:
    """The model that `from_keras` made a layer of, with these parameters and this state: its variables are assigned.

    Raises `TypeError` for a layer that it did not make, `ValueError` for parameters that are not the layer's.

    >>> import jax, lux_sciml as lux
    >>> import keras  # doctest: +SKIP
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])  # doctest: +SKIP
    >>> layer = lux.adapters.from_keras(model)  # doctest: +SKIP
    >>> model = lux.adapters.to_keras(layer, *lux.setup(jax.random.key(0), layer))  # doctest: +SKIP
    """
    if not isinstance(layer, KerasLayer):
        raise TypeError(f"to_keras takes a layer that from_keras made, got a {type(layer).__name__}")
    tree = parameter_tree(layer, ps)
    for path, variable in zip(layer.parameters, layer.model.trainable_variables, strict=True):
        variable.assign(value_at(tree, path))
    for path, variable in zip(layer.others, layer.model.non_trainable_variables, strict=True):
        if path is not None:
            variable.assign(value_at(st["variables"], path))
    return layer.model


def _seed(key: jax.Array, i: int) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, i), (2,), jnp.uint32)


def _paths(variables: Sequence[Any]) -> list[Path]:
    """The paths of variables, without the name of the model in front."""
    paths = [tuple(variable.path.split("/")) for variable in variables]
    if len({path[0] for path in paths}) == 1 and all(len(path) > 2 for path in paths):
        paths = [path[1:] for path in paths]
    twice = [path_string(path) for path, n in collections.Counter(paths).items() if n > 1]
    if twice:
        raise ValueError(f"two variables of the model have the path `{twice[0]}`: give its layers names of their own")
    return paths
