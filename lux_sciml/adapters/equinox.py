"""Equinox: a module as a layer, with its State as state; and a layer as a module."""

import inspect
import math
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._tree import is_inexact
from ..components import ComponentVector
from ..components.nodes import filled, named
from ..core import Constant, Layer, field, testmode
from ..core.converters import checks_itself, function, natural, optional
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree
from .adapted import Adapted, require_call
from .template import Template, as_arrays, each, is_array, require_fit


class EquinoxLayer(Adapted):
    """What `from_equinox` makes. Fields: `template`, the module and its State without their arrays, and the options.

    >>> import lux_sciml as lux
    >>> lux.adapters.from_equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
    EquinoxLayer(<Linear>)      # 9 parameters
    """

    template: Template = field(converter=Template)
    make: Callable[..., Any] | None = field(default=None, converter=optional(function))
    initial: Constant | None = field(default=None, converter=optional(Constant))
    batch_axes: int = field(default=0, converter=natural, kw_only=True)

    def init_params(self, key):
        return self._initial(key)["ps"]

    def init_state(self, key):
        return self._initial(key)["st"] | self.switches(key)

    def _initial(self, key: jax.Array) -> dict[str, Any]:
        """The arrays, as they were given or as they are drawn."""
        if self.initial is not None:
            return as_arrays(self.initial.value)
        assert self.make is not None
        model = _with_state(self.make(key))
        arrays = _arrays(*model)
        require_fit(_arrays(*self.template.model), arrays, "the function of from_equinox makes another module now")
        return arrays

    def bound(self, ps: dict[str, Any], st: dict[str, Any]) -> tuple[Any, eqx.nn.State | None]:
        """The module with its parameters, and its State, if it has one."""
        module, state = self.template.model
        module = filled(filled(module, _is_parameter, ps), _is_buffer, st.get("buffers"))
        if state is None:
            return module, None
        values: dict[Any, Any] = {}

        def put(index: eqx.nn.StateIndex, value: Any) -> None:
            values[index.marker] = filled(state.get(index), is_array, value)

        each(put, named(module, _is_index, _is_index), st["state"])
        markers = state.tree_flatten()[1]
        return module, eqx.nn.State.tree_unflatten(markers, [values[marker] for marker in markers])

    def forward(self, x, ps, st):
        module, state = self.bound(ps, st)
        if self.is_testing(st):
            module = eqx.nn.inference_mode(module)
        key, st = self.keys(st)
        y, state = self._called(module, x, state, key)
        return y, st if state is None else {**st, "state": _of_state(module, state)}

    def _called(self, module: Any, x: Any, state: Any, key: Any) -> tuple[Any, Any]:
        """The output and the next State; over the batch axes by `jax.vmap`."""

        def call(x, state, key):
            given = self.inputs(x) if state is None else (*self.inputs(x), state)
            out = module(*given, **({} if key is None else {"key": key}))
            return (out, None) if state is None else out

        if not self.batch_axes:
            try:
                return call(x, state, key)
            except NameError as error:
                if "unbound axis name" not in str(error):
                    raise
                raise ValueError(
                    f"{error}: the module takes statistics over a batch, `from_equinox(module, batch_axes=1)`"
                ) from error
        lead = self._lead(x)
        count = math.prod(lead)
        samples = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(lead) :]), x)
        keys = None if key is None else jax.random.split(key, count)
        axes = (0, None, None if key is None else 0)
        y, state = jax.vmap(call, axes, (0, None), axis_name=_axis_name(module))(samples, state, keys)
        return jax.tree.map(lambda y: y.reshape(*lead, *y.shape[1:]), y), state

    def _lead(self, x: Any) -> tuple[int, ...]:
        """The sizes of the batch axes."""
        n, shapes = self.batch_axes, [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
        if any(len(shape) < n for shape in shapes) or len({shape[:n] for shape in shapes}) != 1:
            raise ValueError(
                f"from_equinox with batch_axes={n} calls the module for each sample along the first {n} axes of its "
                f"input, got the shapes {', '.join(map(str, shapes))}"
            )
        return shapes[0][:n]


@checks_itself
def from_equinox(
    module: Any,
    state: eqx.nn.State | None = None,
    *,
    batch_axes: int = 0,
    spread: bool = False,
    random: bool | None = None,
) -> EquinoxLayer:
    """An Equinox module as a layer: `y, st = layer(x, ps, st)` is `y = module(x)`.

    * `module`: a module, whose arrays are the initial parameters for every key; or a function of a key that makes one,
      `lambda key: eqx.nn.MLP(2, 2, 32, 2, key=key)`, with its State too, as `eqx.nn.make_with_state(...)` returns it.
    * `state`: the `eqx.nn.State` of a module that was made with one.
    * `batch_axes`: over how many first axes of the input the module is mapped, by `jax.vmap`: modules take one sample,
      layers a batch. `BatchNorm` takes its statistics over these axes, whatever its `axis_name`.
    * `spread`: whether a tuple that comes in is given as several arguments, `module(*x)`.
    * `random`: whether the module is called with a `key`; by default where it has a `Dropout` of a rate above zero, or
      wants a key.

    Parameters: the floating-point arrays, by the paths of the module's fields, `layers.0.weight`. State, where there
    is any: `state`, the values of its `StateIndex`es by their paths; `buffers`, arrays of integers, booleans and keys;
    `key`, renewed by each call in training, and `mode`. In training the module is called as it is given; in test mode
    all its `inference` flags are set. Everything else of the module is kept.

    Of a function, parameters and state are drawn from keys of their own: a State that belongs to the parameters, as
    that of `SpectralNorm`, which has done its first iterations with them, comes along only with a module.

    Raises `TypeError` for what is no module, `ValueError` for one without floating-point arrays and for one whose State
    is missing.

    >>> import lux_sciml as lux
    >>> layer = lux.adapters.from_equinox(lambda key: eqx.nn.MLP(2, 3, 8, 1, key=key), batch_axes=1)
    >>> ps, st = lux.setup(jax.random.key(0), lux.Chain(layer, lux.Dense(3, 1)))
    >>> ps.layer_0["layers.0.weight"].shape, layer(jnp.ones((5, 2)), ps.layer_0, {})[0].shape
    ((8, 2), (5, 3))
    """
    make = None
    if not isinstance(module, eqx.Module | tuple) and callable(module) and not isinstance(module, type):
        make = function(module)
        module = make(jax.random.key(0))
    model = _with_state(module if state is None else (module, state))
    require_call(model[0], "from_equinox")
    arrays = _arrays(*model)
    random = _is_random(model[0]) if random is None else random
    if not arrays["ps"] and not arrays["st"].get("state") and not random:
        raise ValueError(
            f"the {type(model[0]).__name__} has no floating-point arrays, there is nothing to train: a function of it, "
            "`lux.Lambda(lambda x: module(x))`, is a layer"
        )
    initial = Constant(arrays) if make is None else None
    has_modes = bool(_nodes(model[0], lambda node: hasattr(node, "inference")))
    options = {"batch_axes": batch_axes, "spread": spread, "random": random, "has_modes": has_modes}
    return EquinoxLayer(model, make, initial, **options)


class EquinoxModule(eqx.nn.StatefulLayer):
    """What `to_equinox` makes of a layer: its parameters are those of the module."""

    layer: Layer = eqx.field(static=True)
    ps: Any
    st: Any  # without arrays; else in the State
    index: eqx.nn.StateIndex | None
    inference: bool

    def __init__(self, layer: Layer, ps: Parameters, st: State):
        stateful = bool(jax.tree.leaves(st))
        self.layer, self.ps, self.inference = layer, ps, False
        self.st, self.index = (None, eqx.nn.StateIndex(st)) if stateful else (st, None)

    def is_stateful(self) -> bool:
        """Whether it is called with a State, and returns the next one."""
        return self.index is not None

    def __call__(self, x: Any, state: eqx.nn.State | None = None, *, key: Any = None) -> Any:
        """The output; for a layer whose state has arrays the output and the next State. `key` is not used."""
        if self.index is None:
            return self.layer(x, self.ps, testmode(self.st) if self.inference else self.st)[0]
        if state is None:
            raise ValueError("the state of this layer has arrays: call `y, state = module(x, state)`")
        st = state.get(self.index)
        y, after = self.layer(x, self.ps, testmode(st) if self.inference else st)
        return y, state if self.inference else state.set(self.index, after)


@checks_itself
def to_equinox(layer: Layer, ps: Parameters, st: State) -> Any:
    """A layer with its parameters as an Equinox module, `y = module(x)`; the way back from `from_equinox` too.

    Of a layer that `from_equinox` made it is the module itself, with these parameters. Where the state holds arrays,
    such as running statistics and random keys, it is a pair of the module and its `eqx.nn.State`, as
    `eqx.nn.make_with_state` returns it, and is called as `y, state = module(x, state)`; `eqx.nn.inference_mode(module)`
    switches to test mode. Raises `ValueError` for parameters that are not the layer's.

    >>> import lux_sciml as lux
    >>> layer = lux.Dense(2, 3)
    >>> module = to_equinox(layer, *lux.setup(jax.random.key(0), layer))
    >>> eqx.filter_grad(lambda module: module(jnp.ones(2)).sum())(module).ps.bias
    Array([1., 1., 1.], dtype=float32)
    """
    tree = parameter_tree(layer, ps)
    if isinstance(layer, EquinoxLayer):
        module, state = layer.bound(tree, st)
        return module if state is None else (module, state)
    module = EquinoxModule(layer, ps if isinstance(ps, ComponentVector) else tree, st)
    return eqx.nn.make_with_state(lambda: module)() if module.is_stateful() else module


# --- modules --------------------------------------------------------------------------------------------------------


def _with_state(made: Any) -> tuple[Any, eqx.nn.State | None]:
    """A module and its State, which is `None` where it has no use for one."""
    module, state = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, eqx.Module) or not isinstance(state, eqx.nn.State | None):
        raise TypeError(
            "from_equinox takes an Equinox module, a module and its State, or a function of a key that makes one of "
            f"both; got {f'the class {module.__name__}' if isinstance(module, type) else f'a {type(module).__name__}'}"
        )
    if not _indices(module):
        return module, None
    if state is not None:
        return eqx.nn.delete_init_state(module), state.substate(module)
    try:
        return eqx.nn.make_with_state(lambda: module)()
    except ValueError as error:
        raise ValueError(
            f"the {type(module).__name__} was made with a State: give both, `from_equinox(module, state)`"
        ) from error


def _arrays(module: Any, state: eqx.nn.State | None) -> dict[str, Any]:
    """Parameters and state by their paths."""
    st = {"buffers": named(module, _is_buffer)} | ({} if state is None else {"state": _of_state(module, state)})
    return {"ps": named(module, _is_parameter), "st": {name: part for name, part in st.items() if part}}


def _of_state(module: Any, state: eqx.nn.State) -> dict[str, Any]:
    """The values of a State by the paths of their indices."""
    return each(lambda index: named(state.get(index), is_array), named(module, _is_index, _is_index))


def _indices(module: Any) -> list[eqx.nn.StateIndex]:
    return [leaf for leaf in jax.tree.leaves(module, is_leaf=_is_index) if _is_index(leaf)]


def _is_index(x: Any) -> bool:
    return isinstance(x, eqx.nn.StateIndex)


def _is_parameter(x: Any) -> bool:
    return is_array(x) and is_inexact(x)


def _is_buffer(x: Any) -> bool:
    return is_array(x) and not is_inexact(x)


def _nodes(tree: Any, of: Callable[[Any], bool]) -> list[Any]:
    """The tree and all nodes of it, at any depth, that are of a kind."""
    inner = [node for node in jax.tree.leaves(tree, is_leaf=lambda node: node is not tree and of(node)) if of(node)]
    return [tree] * of(tree) + [found for node in inner if node is not tree for found in _nodes(node, of)]


def _is_random(module: Any) -> bool:
    """Whether a module must be called with a key."""
    parameter = inspect.signature(module.__call__).parameters.get("key")
    if parameter is None or parameter.default is parameter.empty:
        return parameter is not None
    dropouts = _nodes(module, lambda node: isinstance(node, eqx.nn.Dropout))
    return any(dropout.p != 0 and not dropout.inference for dropout in dropouts)


def _axis_name(module: Any) -> Hashable:
    """The name of the batch's axis for a module's BatchNorms. Raises `ValueError` for several."""
    norms = _nodes(module, lambda node: isinstance(node, eqx.nn.BatchNorm))
    given = [norm.axis_name if isinstance(norm.axis_name, list | tuple) else [norm.axis_name] for norm in norms]
    names = [name for axes in given for name in axes]
    if any(name != names[0] for name in names):
        raise ValueError(f"the module takes statistics over several axes, {names}: only one is here, that of the batch")
    return names[0] if names else None
