"""Flax Linen: a module as a layer, with its collections as parameters and state."""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._libraries import library
from .._tree import exact_key, in_order
from ..core import Constant, field
from ..core.converters import checks_itself, optional
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree
from .adapted import Adapted, mode_arguments, require_call
from .template import as_arrays, each, require_fit


class LinenModule(Constant):
    """A module in a layer's field, compared by its class and its options: lists among these have no hash."""

    def __init__(self, module: Any):
        module = module.value if isinstance(module, Constant) else module
        key = _key(module)
        vars(self).update(value=module, _key=key, _hash=hash(key))

    def __reduce__(self):
        return LinenModule, (self.value,)

    def _as_text(self, exact: bool) -> str:
        return f"<{type(self.value).__name__}>"


def _key(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return (type(value), *map(_key, value))
    if not isinstance(value, library("flax.linen").Module):
        return exact_key(value)
    names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
    return (type(value), *((name, _key(getattr(value, name, None))) for name in names))


class LinenLayer(Adapted):
    """What `from_linen` makes. Fields: `module`, `example`, the shapes of an input, and the options."""

    module: LinenModule = field(converter=LinenModule)
    example: Constant = field(converter=Constant)
    initial: Constant | None = field(default=None, converter=optional(Constant))
    rngs: tuple[str, ...] = field(default=(), kw_only=True)

    def init_params(self, key):
        return self._initial(key).get("params", {})

    def init_state(self, key):
        variables = {name: part for name, part in self._initial(key).items() if name != "params"}
        return ({"variables": variables} if variables else {}) | self.switches(key)

    def _initial(self, key: jax.Array) -> dict[str, Any]:
        return self.drawn(key) if self.initial is None else as_arrays(self.initial.value)

    def drawn(self, key: jax.Array) -> dict[str, Any]:
        """All collections, drawn anew."""
        example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.example.value["x"])
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", *self.rngs))}
        return plain(self.module.value.init(keys, *self.inputs(example), **self.test))

    def forward(self, x, ps, st):
        key, st = self.keys(st)
        old = st.get("variables", {})
        y, new = self.called(x, {"params": ps, **old}, key, **self.switched(st))
        return y, {**st, "variables": in_order({name: plain(new)[name] for name in old}, old)} if old else st

    def called(self, x: Any, variables: dict[str, Any], key: Any, **options: Any) -> tuple[Any, Any]:
        """The output and the collections that may change."""
        rngs = None if key is None else {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rngs)}
        mutable = [name for name in variables if name != "params"]
        return self.module.value.apply(variables, *self.inputs(x), rngs=rngs, mutable=mutable, **options)


@checks_itself
def from_linen(
    module: Any,
    x: Any,
    *,
    variables: Mapping[str, Any] | None = None,
    rngs: tuple[str, ...] = ("dropout",),
    spread: bool = False,
    train: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
) -> LinenLayer:
    """A Flax Linen module as a layer: `y, st = layer(x, ps, st)` is `module.apply({"params": ps, ...}, x)`.

    * `module`: a module, `nn.Dense(3)`.
    * `x`: an input, or its `jax.ShapeDtypeStruct`, from which the module finds its shapes.
    * `variables`: what `module.init` returned, or what came out of training: the initial values for every key.
    * `rngs`: the names of the random streams that a call has; they all come from one key.
    * `spread`: whether a tuple that comes in is given as several arguments.
    * `train`, `test`: the arguments of a call in training and in test mode, `{"train": True}` and `{"train": False}`;
      by default those of the usual names that its signature has, `train`, `deterministic` and so on.

    Parameters: the collection `params`. State, where there is any: `variables`, all other collections, such as
    `batch_stats`, all of which a call may change; `key`, where a call in training draws from `rngs`; and `mode`.

    Raises `TypeError` for what is no Linen module, `ValueError` for one without parameters and state, for variables of
    another architecture and for a random stream that `rngs` does not name, `ImportError` without Flax, which comes with
    `pip install lux-sciml[adapters]`.

    >>> import lux_sciml as lux
    >>> from flax import linen as nn  # doctest: +SKIP
    >>> layer = lux.adapters.from_linen(nn.Dense(3), jnp.ones(2))  # doctest: +SKIP
    >>> lux.setup(jax.random.key(0), layer)[0].kernel.shape  # doctest: +SKIP
    (2, 3)
    """
    linen = library("flax.linen")
    if not isinstance(module, linen.Module):
        got = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise TypeError(f"from_linen takes a module of flax.linen, got {got}")
    require_call(module, "from_linen")
    train, test = mode_arguments(module.__call__, train, test)
    example = Constant({"x": jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), x)})
    layer = LinenLayer(module, example, rngs=rngs, spread=spread, train=train, test=test)
    try:
        shapes = jax.eval_shape(layer.drawn, jax.random.key(0))
        random = _is_random(layer, shapes)
    except library("flax.errors").InvalidRngError as error:
        raise ValueError(
            f"a call draws from a random stream that rngs={layer.rngs} does not name: {error}: name all of them"
        ) from error
    if not jax.tree.leaves(shapes) and not random:
        raise ValueError(
            f"the {type(module).__name__} has no parameters: `lux.Lambda(lambda x: module.apply({{}}, x))`"
        )
    initial = None if variables is None else plain(variables)
    if initial is not None:
        require_fit(shapes, initial, f"the variables are not those of this {type(module).__name__}")
    return layer.replace(initial=initial and Constant(initial), random=random, has_modes=bool(train or test))


@checks_itself
def to_linen(layer: LinenLayer, ps: Parameters, st: State) -> tuple[Any, dict[str, Any]]:
    """The module and its variables: `module.apply(variables, x)`, of a layer that `from_linen` made.

    Raises `TypeError` for a layer that it did not make, `ValueError` for parameters that are not the layer's.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> from flax import linen as nn  # doctest: +SKIP
    >>> layer = lux.adapters.from_linen(nn.Dense(3), jnp.ones(2))  # doctest: +SKIP
    >>> module, variables = lux.adapters.to_linen(layer, *lux.setup(jax.random.key(0), layer))  # doctest: +SKIP
    """
    if not isinstance(layer, LinenLayer):
        raise TypeError(f"to_linen takes a layer that from_linen made, got a {type(layer).__name__}")
    return layer.module.value, {"params": parameter_tree(layer, ps), **st.get("variables", {})}


def plain(variables: Any) -> dict[str, Any]:
    """Collections as nested dicts of arrays."""
    flax = library("flax")
    return each(lambda x: x, flax.core.meta.unbox(flax.core.unfreeze(variables)))


def _is_random(layer: LinenLayer, shapes: Any) -> bool:
    """Whether a call in training draws random numbers."""
    invalid = library("flax.errors").InvalidRngError

    def call(x, variables, key):
        return layer.called(x, variables, key, **layer.train)[0]

    x = layer.example.value["x"]
    try:
        jax.eval_shape(lambda x, variables: call(x, variables, None), x, shapes)
        return False
    except invalid:
        jax.eval_shape(call, x, shapes, jax.random.key(0))  # raises for a stream that `rngs` does not name
        return True
