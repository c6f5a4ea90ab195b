"""UDE: known terms and nets in one vector field."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...core import Container, Layer, as_layer, field
from ...core.container import call_child
from ...core.converters import checks_itself, dict_of, numbers, required_arguments, short

_TIMES = ("t", "time")


@checks_itself
def _function(value: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(value, Layer) or not callable(value):
        raise TypeError(f"a UDE starts with a function (u, p, nets), got {short(value)}")
    _require_three_arguments(value)
    return value


@checks_itself
def _physics(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"the constants of a UDE are a dict of numbers or arrays by name, got {short(value)}")
    return dict_of(_constant)(value)


@checks_itself
def _constant(value: Any) -> Any:
    return value if isinstance(value, int | float) else numbers(value)


class UDE(Container):
    r"""The vector field of a universal differential equation: known terms, their constants, and nets for unknown ones.

    `function(u, p, nets)` returns :math:`du/dt`, where `u` is what the layer gets (with `NeuralODE`'s `time_dependent`,
    `(t, u)`), `p.alpha` is a physical constant and `nets.missing(u)` calls a net. `physics` are the first guesses of
    the constants, numbers or arrays by name, all learned; keywords are the nets. Parameters: `physics`, and an entry
    for each net, so that one ComponentVector holds `ps.physics.alpha` and `ps.missing.layer_0.weight`. A net called
    several times passes its state on from call to call.

    To learn the initial value too, put it in the same vector: `q = lux.ComponentVector(u0=u0, ude=ps)`, and
    `node(q.u0, q.ude, st)` in the loss. To fit some of the parameters, see `lux.minimize`.

    Rackauckas et al., "Universal differential equations for scientific machine learning", arXiv:2001.04385. Raises
    `AttributeError` for constants and nets that do not exist.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> def field(u, p, nets):
    ...     return jnp.array([p.alpha, -p.delta]) * u + nets.missing(u)
    >>> net = lux.Chain(lux.Dense(2, 5, jnp.tanh), lux.Dense(5, 2))
    >>> node = lux.NeuralODE(lux.UDE(field, {"alpha": 1.3, "delta": 1.8}, missing=net), ts=[0.0, 0.1, 0.2])
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> sol, st = node(jnp.array([0.4, 4.6]), ps, st)
    >>> ps.physics, sol.ys.shape
    (ComponentVector(alpha=1.3, delta=1.8), (3, 2))
    """

    function: Callable[..., Any] = field(converter=_function)
    physics: Mapping[str, Any] = field(converter=_physics)
    nets: Mapping[str, Layer] = field(converter=dict_of(as_layer))

    def __init__(self, function: Any, physics: Any = None, **nets: Any):
        self.function = function
        self.physics = {} if physics is None else physics
        self.nets = nets

    def init_params(self, key):
        constants = {name: jnp.asarray(np.asarray(value), float) for name, value in self.physics.items()}
        return {**({"physics": constants} if constants else {}), **super().init_params(key)}

    def forward(self, x, ps, st):
        st = dict(st)

        def net(name):
            def call(x):
                y, st[name] = call_child(name, self.children[name], x, ps, st)
                return y

            return call

        nets = _Names("net", {name: net(name) for name in self.children})
        try:
            return self.function(x, _Names("constant", ps.get("physics", {})), nets), st
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if _time_is_an_argument(self.function):
                raise _called_otherwise(self.function) from error
            raise


class _Names(dict):
    """A dict whose items are attributes too."""

    def __init__(self, kind: str, items: Mapping[str, Any]):
        super().__init__(items)
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this UDE has no {self.kind} {name!r}; it has {', '.join(self) or 'none'}")
        return self[name]


def _require_three_arguments(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of functions written in C
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise _called_otherwise(function) from None


def _time_is_an_argument(function: Callable[..., Any]) -> bool:
    """Whether it is written as f(t, u, p) or f(u, p, t), as SciPy's and Julia's are."""
    names = required_arguments(function)
    return len(names) == 3 and (names[0] in _TIMES or names[2] in _TIMES)


def _called_otherwise(function: Callable[..., Any]) -> TypeError:
    return TypeError(
        "the function of a UDE is called as f(u, p, nets), with time_dependent=True as f((t, u), p, nets); got a "
        f"function of {inspect.signature(function)}"
    )
