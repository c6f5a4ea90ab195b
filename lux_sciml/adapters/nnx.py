"""Flax NNX: a module as a layer, with its variables as parameters and state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._libraries import library
from ..components.nodes import filled, named
from ..core import Constant, field
from ..core.converters import checks_itself, function, optional
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree
from .adapted import Adapted, mode_arguments, require_call
from .template import Template, as_arrays, each, require_fit


class NNXLayer(Adapted):
    """What `from_nnx` makes. Fields: `template`, the module without its arrays, and the options."""

    template: Template = field(converter=Template)
    make: Callable[..., Any] | None = field(default=None, converter=optional(function))
    initial: Constant | None = field(default=None, converter=optional(Constant))

    def init_params(self, key):
        return self._initial(key)["ps"]

    def init_state(self, key):
        return self._initial(key)["st"] | self.switches(key)

    def _initial(self, key: jax.Array) -> dict[str, Any]:
        """The arrays, as they were given or as they are drawn."""
        if self.initial is not None:
            return as_arrays(self.initial.value)
        assert self.make is not None
        model = _split(self.make(library("flax.nnx").Rngs(key)))
        arrays = _arrays(*model)
        require_fit(_arrays(*self.template.model), arrays, "the function of from_nnx makes another module now")
        return arrays

    def bound(self, ps: dict[str, Any], st: dict[str, Any], key: Any = None) -> tuple[Any, list[Any]]:
        """The module with its arrays, and the counters of its random streams, which start anew from the key."""
        nnx = library("flax.nnx")
        graphdef, params, streams, others = self.template.model
        streams = jax.tree.map(lambda variable: variable, streams)  # a copy: variables are changed in place
        counters: list[Any] = []
        for i, variable in enumerate(jax.tree.leaves(streams, is_leaf=_is_variable)):
            shape = variable.get_value().shape
            if isinstance(variable, nnx.RngKey):
                one = jax.random.fold_in(jax.random.key(0) if key is None else key, i)
                variable.set_value(jax.random.split(one, shape) if shape else one)
            else:
                variable.set_value(jnp.zeros(shape, jnp.uint32))
                counters.append(variable.get_value())
        module = nnx.merge(graphdef, _with(params, ps), streams, _with(others, st.get("variables", {})))
        return module, counters

    def forward(self, x, ps, st):
        nnx, testing = library("flax.nnx"), self.is_testing(st)
        key, after = self.keys(st)
        module, counters = self.bound(ps, st, key)
        if self.has_modes:
            module.eval() if testing else module.train()
        y = module(*self.inputs(x), **self.switched(st))
        _, _, streams, others = _split(module)
        counted = [v.get_value() for v in jax.tree.leaves(streams, is_leaf=_is_variable) if isinstance(v, nnx.RngCount)]
        if any(old is not new for old, new in zip(counters, counted, strict=True)):  # the key was used
            st = after
        if "variables" in st:
            st = {**st, "variables": _there(_values(others), st["variables"])}
        return y, st


@checks_itself
def from_nnx(
    module: Any,
    *,
    spread: bool = False,
    train: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
) -> NNXLayer:
    """A Flax NNX module as a layer: `y, st = layer(x, ps, st)` is `y = module(x)`.

    * `module`: a module, whose variables are the initial ones for every key; or a function of `nnx.Rngs` that makes
      one, `lambda rngs: nnx.Linear(2, 3, rngs=rngs)`.
    * `spread`: whether a tuple that comes in is given as several arguments, `module(*x)`.
    * `train`, `test`: the arguments of a call in training and in test mode; by default those of the usual names that
      its signature has, such as `train`, `deterministic` and `use_running_average`.

    Parameters: the variables that are `nnx.Param`, by their paths. State, where there is any: `variables`, all others,
    such as the statistics of BatchNorm, renewed by each call; `key`, from which the random streams start in each call,
    and `mode`: the module is called after `module.train()` or `module.eval()`. What is sown, and variables that a call
    adds, are left out.

    Raises `TypeError` for what is no NNX module, `ValueError` for one without parameters and state, `ImportError`
    without Flax, which comes with `pip install lux-sciml[adapters]`.

    >>> import lux_sciml as lux
    >>> from flax import nnx  # doctest: +SKIP
    >>> layer = lux.adapters.from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))  # doctest: +SKIP
    >>> lux.setup(jax.random.key(0), layer)[0].kernel.shape  # doctest: +SKIP
    (2, 3)
    """
    nnx, make = library("flax.nnx"), None
    if not isinstance(module, nnx.Module) and callable(module) and not isinstance(module, type):
        make = function(module)
        module = make(nnx.Rngs(0))
    if not isinstance(module, nnx.Module):
        got = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise TypeError(f"from_nnx takes a module of flax.nnx, or a function of `nnx.Rngs` that makes one; got {got}")
    require_call(module, "from_nnx")
    model = _split(module)
    arrays = _arrays(*model)
    if not jax.tree.leaves(model):
        raise ValueError(f"the {type(module).__name__} has no parameters: `lux.Lambda(lambda x: module(x))` is a layer")
    train, test = mode_arguments(module.__call__, train, test)
    switches = ("deterministic", "use_running_average")
    has_modes = bool(train or test) or any(hasattr(m, s) for _, m in nnx.iter_modules(module) for s in switches)
    initial = Constant(arrays) if make is None else None
    random = bool(jax.tree.leaves(model[2]))
    options = {"spread": spread, "random": random, "has_modes": has_modes, "train": train, "test": test}
    return NNXLayer(model, make, initial, **options)


@checks_itself
def to_nnx(layer: NNXLayer, ps: Parameters, st: State) -> Any:
    """The module that `from_nnx` made a layer of, with these parameters and this state.

    Raises `TypeError` for a layer that it did not make, `ValueError` for parameters that are not the layer's.

    >>> import jax, lux_sciml as lux
    >>> from flax import nnx  # doctest: +SKIP
    >>> layer = lux.adapters.from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))  # doctest: +SKIP
    >>> module = lux.adapters.to_nnx(layer, *lux.setup(jax.random.key(0), layer))  # doctest: +SKIP
    """
    if not isinstance(layer, NNXLayer):
        raise TypeError(f"to_nnx takes a layer that from_nnx made, got a {type(layer).__name__}")
    return layer.bound(parameter_tree(layer, ps), st, st.get("key"))[0]


def _split(module: Any) -> tuple[Any, Any, Any, Any]:
    """The structure, the parameters, the random streams and all other variables."""
    nnx = library("flax.nnx")
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _arrays(graphdef: Any, params: Any, streams: Any, others: Any) -> dict[str, Any]:
    st = _values(others)
    return {"ps": _values(params), "st": {"variables": st} if st else {}}


def _values(state: Any) -> Any:
    """The values of variables by their paths."""
    return each(lambda variable: variable.get_value(), named(state, _is_variable, _is_variable))


def _with(state: Any, values: Any) -> Any:
    """Variables with other values."""
    new = filled(state, _is_variable, values, _is_variable)
    return jax.tree.map(lambda variable, x: variable.replace(x), state, new, is_leaf=_is_variable)


def _there(new: Any, old: Any) -> Any:
    """Of new values those that were there before."""
    return {name: _there(new[name], child) for name, child in old.items()} if isinstance(old, Mapping) else new


def _is_variable(x: Any) -> bool:
    return isinstance(x, library("flax.nnx").Variable)
