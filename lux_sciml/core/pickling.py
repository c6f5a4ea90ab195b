"""Functions by the path from which they can be imported: how layers keep them in pickles, and how they print."""

import functools
import importlib
import operator
import sys
from typing import Any

import jax

from .static import FrozenDict

# Where functions are sought that do not say themselves where they are, `jnp.tanh` say; names of layers come first.
PUBLIC = (
    *("jax.numpy", "jax.nn", "jax.lax", "jax.scipy.special", "jax.nn.initializers", "operator", "numpy"),
    *("jax.numpy.linalg", "jax.numpy.fft", "jax.random", "diffrax", "optimistix", "lineax", "optax", "equinox"),
)


def import_path(value: Any, modules: tuple[str, ...] = PUBLIC) -> tuple[str, str] | None:
    """The module and the name by which a value is found, a function, a class, or an object that is one of its kind.

    `None` for lambdas, for what is local, and for objects that are compared by their content.
    """
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(name, str):
        return _path_of_object(value)
    for module in (*modules, str(getattr(value, "__module__", ""))):  # the last for one's own, jitted ones too
        try:
            if operator.attrgetter(name)(sys.modules.get(module)) is value:
                return module, name
        except AttributeError:
            continue
    return None


def _path_of_object(value: Any) -> tuple[str, str] | None:
    """Of an object that only equals itself, such as the marks that libraries keep in a module, beside their class."""
    module = type(value).__module__
    if type(value).__eq__ is not object.__eq__ or module == "builtins":
        return None
    names = vars(sys.modules.get(module, object))
    return next(((module, name) for name, found in names.items() if found is value), None)


class _Imported:
    """Stands for a function in a pickle; unpickles to the function. Callable, so that `functools.partial` takes it."""

    def __init__(self, module: str, name: str):
        self.path = (module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _import(*self.path)(*args, **kwargs)

    def __reduce__(self):
        return _import, self.path


def _import(module: str, name: str) -> Any:
    return operator.attrgetter(name)(importlib.import_module(module))


def picklable(value: Any) -> Any:
    """`value` with functions such as `jnp.tanh`, which pickle cannot find where they say they live, by import path."""
    if type(value) is tuple:
        return tuple(map(picklable, value))
    if type(value) in (dict, FrozenDict):
        return type(value)({key: picklable(item) for key, item in value.items()})
    if isinstance(value, functools.partial):
        keywords = {name: picklable(item) for name, item in value.keywords.items()}
        return functools.partial(picklable(value.func), *map(picklable, value.args), **keywords)
    if not jax.tree_util.all_leaves([value]):  # option objects of other libraries
        return jax.tree.map(picklable, value)
    found = None if isinstance(value, type) else import_path(value)
    return _Imported(*found) if found else value
