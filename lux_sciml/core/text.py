"""Values of options as Python text, exact to the bit.

The text is read with `from lux_sciml import *` and `jnp`, with `jax`, `np`, `partial`, `diffrax`, `optimistix`,
`lineax`, `optax` where objects or functions of theirs are options, and with the modules of functions of one's own.
Functions stand by the name from which they can be imported; those that cannot, lambdas and functions inside functions,
stand in angle brackets, which Python refuses.
"""

import dataclasses
import enum
import functools
import inspect
import math
import sys
import types
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._tree import exact_key
from .pickling import PUBLIC, import_path
from .static import FrozenDict, freeze, is_random_key

_ROOT = __name__.partition(".")[0]
LONG = 200  # elements of an array; more are printed compressed
PLAIN_DTYPES = [np.dtype(kind) for kind in ("float64", "int64", "complex128", "bool")]  # of lists of Python's numbers
_PREFIX = {"jax.numpy": "jnp", "numpy": "np", "builtins": "", "__main__": "", _ROOT: ""}


def value_text(value: Any, exact: bool = True) -> str:
    """A value as the Python that makes it; or, not `exact`, for people: functions by bare names, arrays by shape."""
    recur = functools.partial(value_text, exact=exact)
    kind = type(value)
    if hasattr(kind, "_as_text"):  # layers and Constants
        return value._as_text(exact)
    if kind is tuple:
        return f"({', '.join(map(recur, value))}{',' if len(value) == 1 else ''})"
    if kind is list:
        return f"[{', '.join(map(recur, value))}]"
    if kind in (dict, FrozenDict):
        return f"{{{', '.join(f'{key!r}: {recur(item)}' for key, item in value.items())}}}"
    if isinstance(value, functools.partial):
        keywords = [f"{name}={recur(item)}" for name, item in value.keywords.items()]
        return f"partial({', '.join([recur(value.func), *map(recur, value.args), *keywords])})"
    if isinstance(value, enum.Enum):
        return f"{name_text(kind, exact)}.{value.name}"
    if kind in (float, complex):
        return _number_text(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array | np.dtype):
        return _array_text(value) if exact else describe_array(value)
    if isinstance(value, type | types.ModuleType) or (callable(value) and hasattr(value, "__name__")):
        return name_text(value, exact)
    written_by_class = not isinstance(value, eqx.Module) and not (
        # what `@dataclass` was told, which checkers do not know
        dataclasses.is_dataclass(value) and kind.__dataclass_params__.repr  # pyright: ignore[reportAttributeAccessIssue]
    )
    if import_path(value):
        return name_text(value, exact)
    return repr(value) if written_by_class and not isinstance(value, tuple) else _object_text(value, exact)


def name_text(value: Any, exact: bool = True) -> str:
    """The name of a function, class or module, with the module in front; in angle brackets if it cannot be imported."""
    if isinstance(value, types.ModuleType):
        return _PREFIX.get(value.__name__, value.__name__)
    if not exact:
        return getattr(value, "__name__", repr(value))
    root = sys.modules[_ROOT]
    rooms = {
        module.__name__: name for name in root.__all__ if isinstance(module := getattr(root, name), types.ModuleType)
    }
    found = import_path(value, (_ROOT, *rooms, *PUBLIC))
    if found is None:
        name = getattr(value, "__qualname__", value.__name__)
        return "<lambda>" if name.endswith("<lambda>") else f"<{name}>"
    module, name = found
    module = (_PREFIX | rooms).get(module, module)
    return f"{module}.{name}" if module else name


def describe_array(x: Any) -> str:
    """`float32[2,3]`."""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]" if hasattr(x, "shape") else repr(x)


def elements_text(x: np.ndarray) -> str | None:
    """The elements of an array, in nested lists; `None` where that is not exact, or not an array of this shape."""
    exact = [] if x.dtype.kind in "fcV" and np.isnan(x).any() else [x.tolist()]  # some NaNs differ from `jnp.nan`
    if x.dtype.kind in "fcV":
        read = complex if x.dtype.kind == "c" else float
        exact.insert(0, np.reshape([read(str(element)) for element in x.flat], x.shape).tolist())  # `0.1` in float32
    for elements in exact:
        again = np.array(elements, x.dtype)
        if again.shape == x.shape and again.tobytes() == x.tobytes():
            return value_text(elements)
    return None


def _number_text(x: Any) -> str:
    if isinstance(x, complex):
        return f"complex({_number_text(x.real)}, {_number_text(x.imag)})"
    return repr(x) if math.isfinite(x) else "jnp.nan" if math.isnan(x) else "jnp.inf" if x > 0 else "-jnp.inf"


def _array_text(x: Any) -> str:
    """An array, a scalar or a dtype of NumPy's; a random key of JAX's."""
    if isinstance(x, np.dtype):
        return f"np.dtype({x.name!r})"
    if is_random_key(x):
        data = _array_text(np.asarray(jax.random.key_data(x)))
        return f"jax.random.wrap_key_data({data}, impl={str(jax.random.key_impl(x))!r})"
    if isinstance(x, np.generic) and (x.dtype.kind not in "fc" or np.isfinite(x)) and x.dtype.kind != "V":
        return repr(x)
    array = np.asarray(x)
    elements = elements_text(array)
    if elements is None:
        text = f"np.frombuffer({array.tobytes()!r}, {array.dtype.name!r}).reshape({array.shape})"
    else:
        dtype = "" if array.dtype in PLAIN_DTYPES and array.size else f", {array.dtype.name!r}"
        text = f"np.array({elements}{dtype})"
    return f"{text}[()]" if isinstance(x, np.generic) else text


def _object_text(value: Any, exact: bool) -> str:
    """An option object of another library, or a NamedTuple, by arguments that make an equal one, as few as do."""
    cls = type(value)
    values, defaults = {}, []
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            values |= getattr(value, name, {})
        elif hasattr(value, name):
            values[name] = getattr(value, name)
            defaults += [name] if parameter.default is not parameter.empty else []
    for name in defaults:
        fewer = {key: item for key, item in values.items() if key != name}
        values = fewer if _makes(cls, fewer, value) else values
    if not _makes(cls, values, value):
        return f"<{' '.join(repr(value).split())}>"
    return f"{name_text(cls, exact)}({', '.join(f'{name}={value_text(item, exact)}' for name, item in values.items())})"


def _makes(cls: type, values: dict[str, Any], value: Any) -> bool:
    """Whether a class makes an equal value of the arguments."""
    try:
        return exact_key(_in_numpy(cls(**values))) == exact_key(_in_numpy(value))
    except Exception:  # of its checks
        return False


def same(value: Any, default: Any) -> bool:
    """Whether two values of an option are the same in types and bits."""
    return exact_key(freeze(value)) == exact_key(freeze(default))


def _in_numpy(tree: Any) -> Any:
    """The tree with its arrays as a Constant keeps them."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) and not is_random_key(x) else x, tree)
