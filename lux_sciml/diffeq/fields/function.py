"""Any function f(t, y, args), as diffrax takes them, as a layer whose parameters are the numbers in args."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._tree import dict_map, is_inexact
from ...components.nodes import filled, named
from ...core import Constant, Layer, field
from ...core.converters import checks_itself, short


class FunctionField(Layer):
    """What `as_field` makes: `template` are the function and its `args` without the parameters, `initial` these.

    >>> import lux_sciml as lux
    >>> lux.as_field(lambda t, y, args: -args["rate"] * y, {"rate": 0.5}).initial
    Constant({'rate': np.array(0.5, 'float32')})
    """

    template: Constant = field(converter=Constant)
    initial: Constant = field(converter=Constant)
    names: tuple[str, ...] = ()

    def init_params(self, key):
        return dict_map(jnp.asarray, self.initial.value)

    def forward(self, x, ps, st):
        if not isinstance(x, tuple) or len(x) != 2:
            raise ValueError(
                f"a field made by `as_field` is called with the tuple (t, y), got a {type(x).__name__}: give the "
                "equation `time_dependent=True`"
            )
        f, args = self.template.value["f"], self.template.value["args"]
        of_f, of_args = (ps["f"], ps["args"]) if _holds(f) and _holds(args) else (ps, ps)
        if _is_parameter(args):
            of_args = of_args["args"]
        elif self.names:
            of_args = {str(i): of_args.get(name) for i, name in enumerate(self.names)}
        return filled(f, _is_parameter, of_f)(*x, filled(args, _is_parameter, of_args)), st


def _is_parameter(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _holds(tree: Any) -> bool:
    return any(map(_is_parameter, jax.tree.leaves(tree)))


@checks_itself
def as_field(f: Callable[..., Any], args: Any = None, names: Sequence[str] | None = None) -> FunctionField:
    r"""A function `f(t, y, args)`, as diffrax's `ODETerm` takes them, as a vector field: :math:`dy/dt = f(t, y, args)`.

    It is called with `(t, y)`: give the equation `time_dependent=True`.

    * `f`: a function, or a module of Equinox that is called so, whose floating-point arrays are parameters then.
    * `args`: what `f` is called with, any tree; its floating-point arrays and Python's floats are parameters, by their
      paths. Everything else, integers too, is kept as it is.
    * `names`: names for the items of `args` where that is a tuple or a list: `names=("alpha", "beta")`.

    Parameters start as they are given, for every key: those of `args`, or those of `f`; of both, under `f` and `args`.
    Raises `TypeError` for what is no function and for layers, which are fields themselves, `ValueError` for names that
    are too many, too few or there twice.

    >>> import lux_sciml as lux
    >>> def lotka_volterra(t, y, args):
    ...     a, b, c, d = args
    ...     return jnp.stack([a * y[0] - b * y[0] * y[1], -c * y[1] + d * y[0] * y[1]])
    >>> field = lux.as_field(lotka_volterra, (0.1, 0.02, 0.4, 0.02), names=("a", "b", "c", "d"))
    >>> node = lux.NeuralODE(field, ts=jnp.linspace(0.0, 10.0, 5), time_dependent=True, output="ys")
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> ps
    ComponentVector(a=0.1, b=0.02, c=0.4, d=0.02)
    >>> node(jnp.array([10.0, 10.0]), ps, st)[0].shape
    (5, 2)
    """
    if isinstance(f, Layer | type) or not callable(f):
        raise TypeError(f"as_field takes a function f(t, y, args), got {short(f)}; a layer is a field as it is")
    if names is not None and (
        not isinstance(args, list | tuple) or len(args) != len(names) or len({*names}) < len(names)
    ):
        raise ValueError(
            f"`names` are those of the items of `args`, one each, no two alike: got {list(names)} for "
            f"{len(args) if isinstance(args, list | tuple) else 'no'} items"
        )
    of_f, of_args = named(f, is_inexact), named(args, _is_number)
    if _is_number(args):
        of_args = {"args": of_args}
    elif names is not None:
        of_args = {name: of_args[str(i)] for i, name in enumerate(names) if str(i) in of_args}
    initial = {"f": of_f, "args": of_args} if of_f and of_args else of_f or of_args
    template = {"f": _without(f, is_inexact), "args": _without(args, _is_number)}
    initial = dict_map(lambda x: x if is_inexact(x) else np.asarray(x, jax.dtypes.canonicalize_dtype(type(x))), initial)
    return FunctionField(Constant(template), Constant(initial), tuple(names or ()))


def _is_number(x: Any) -> bool:
    return is_inexact(x) or type(x) in (float, complex)


def _without(tree: Any, of: Callable[[Any], bool]) -> Any:
    """The tree with the shapes of what is `of` a kind in its place, whatever the precision."""

    def one(x: Any) -> Any:
        return jax.ShapeDtypeStruct(np.shape(x), "complex64" if np.iscomplexobj(x) else "float32") if of(x) else x

    return jax.tree.map(one, tree)
