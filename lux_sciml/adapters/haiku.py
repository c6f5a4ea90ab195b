"""Haiku: a transformed function as a layer, with its parameters and state."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._libraries import library
from .._tree import in_order
from ..core import Constant, field
from ..core.converters import checks_itself, optional
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree
from .adapted import Adapted, mode_arguments
from .template import as_arrays, each, require_fit


class HaikuLayer(Adapted):
    """What `from_haiku` makes. Fields: `function`, `example`, the shapes of an input, and the options."""

    function: Any
    example: Constant = field(converter=Constant)
    initial: Constant | None = field(default=None, converter=optional(Constant))

    @property
    def transformed(self) -> Any:
        """The pair of `init` and `apply`, with state."""
        return _with_state(self.function)

    def init_params(self, key):
        return self._initial(key)[0]

    def init_state(self, key):
        state = self._initial(key)[1]
        return ({"state": state} if state else {}) | self.switches(key)

    def _initial(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.initial is None:
            return self.drawn(key)
        given = as_arrays(self.initial.value)
        return given["params"], given["state"]

    def drawn(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and state, drawn anew."""
        example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.example.value["x"])
        params, state = self.transformed.init(key, *self.inputs(example), **self.train)
        return _plain(params), _plain(state)

    def forward(self, x, ps, st):
        key, st = self.keys(st)
        old = st.get("state", {})
        y, new = self.transformed.apply(ps, old, key, *self.inputs(x), **self.switched(st))
        return y, {**st, "state": in_order(_plain(new), old)} if old else st


@checks_itself
def from_haiku(
    function: Any,
    x: Any,
    *,
    params: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    spread: bool = False,
    train: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
) -> HaikuLayer:
    """A Haiku function as a layer: `y, st = layer(x, ps, st)` is `apply(ps, state, key, x)`.

    * `function`: a function that uses Haiku's modules, `lambda x: hk.nets.MLP([32, 2])(x)`, or what `hk.transform` or
      `hk.transform_with_state` made of one.
    * `x`: an input, or its `jax.ShapeDtypeStruct`, from which the modules find their shapes.
    * `params`, `state`: those of `init` or of training: the initial values for every key.
    * `spread`: whether a tuple that comes in is given as several arguments.
    * `train`, `test`: the arguments of a call in training and in test mode, `{"is_training": True}` and
      `{"is_training": False}`; by default those of the usual names that the function's signature has. Of a transformed
      function they must be given.

    Parameters: Haiku's, by the names of its modules, `ps["mlp/~/linear_0"].w`. State, where there is any: `state`,
    Haiku's; `key`, where a call in training draws random numbers; and `mode`.

    Raises `TypeError` for what is no function, `ValueError` for one without parameters and state and for `params` of
    another architecture, `ImportError` without Haiku, which comes with `pip install lux-sciml[adapters]`.

    >>> import lux_sciml as lux
    >>> import haiku as hk  # doctest: +SKIP
    >>> layer = lux.adapters.from_haiku(lambda x: hk.Linear(3)(x), jnp.ones(2))  # doctest: +SKIP
    >>> lux.setup(jax.random.key(0), layer)[0].linear.w.shape  # doctest: +SKIP
    (2, 3)
    """
    hk = library("haiku")
    is_transformed = isinstance(function, hk.Transformed | hk.TransformedWithState)
    if not is_transformed and (not callable(function) or isinstance(function, hk.Module | type)):
        raise TypeError(
            "from_haiku takes a function that uses Haiku's modules, or a transformed one, got a "
            f"{type(function).__name__}"
        )
    train, test = ({}, {}) if is_transformed and train is test is None else mode_arguments(function, train, test)
    example = Constant({"x": jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), x)})
    layer = HaikuLayer(function, example, spread=spread, train=train, test=test)
    shapes = jax.eval_shape(layer.drawn, jax.random.key(0))
    random = _is_random(layer, *shapes)
    if not jax.tree.leaves(shapes) and not random:
        raise ValueError("the function of from_haiku has no parameters: `lux.Lambda(function)` is a layer")
    initial = None
    if params is not None:
        initial = {"params": _plain(params), "state": _plain(state or {})}
        require_fit(dict(zip(("params", "state"), shapes, strict=True)), initial, "these are not its parameters")
    return layer.replace(initial=initial and Constant(initial), random=random, has_modes=bool(train or test))


@checks_itself
def to_haiku(layer: HaikuLayer, ps: Parameters, st: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Haiku's parameters and state, of a layer that `from_haiku` made: `apply(params, state, key, x)` takes them.

    Raises `TypeError` for a layer that it did not make, `ValueError` for parameters that are not the layer's.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> import haiku as hk  # doctest: +SKIP
    >>> layer = lux.adapters.from_haiku(lambda x: hk.Linear(3)(x), jnp.ones(2))  # doctest: +SKIP
    >>> params, state = lux.adapters.to_haiku(layer, *lux.setup(jax.random.key(0), layer))  # doctest: +SKIP
    """
    if not isinstance(layer, HaikuLayer):
        raise TypeError(f"to_haiku takes a layer that from_haiku made, got a {type(layer).__name__}")
    return parameter_tree(layer, ps), st.get("state", {})


def _with_state(function: Any) -> Any:
    hk = library("haiku")
    if isinstance(function, hk.TransformedWithState):
        return function
    return hk.with_empty_state(function) if isinstance(function, hk.Transformed) else hk.transform_with_state(function)


def _is_random(layer: HaikuLayer, params: Any, state: Any) -> bool:
    """Whether a call in training draws random numbers."""

    def call(x, params, state, key):
        return layer.transformed.apply(params, state, key, *layer.inputs(x), **layer.train)[0]

    x = layer.example.value["x"]
    try:
        jax.eval_shape(lambda x, params, state: call(x, params, state, None), x, params, state)
        return False
    except Exception:  # of its own kind in each version
        jax.eval_shape(call, x, params, state, jax.random.key(0))  # raises what is wrong with a key too
        return True


def _plain(tree: Any) -> dict[str, Any]:
    return each(lambda x: x, tree)
