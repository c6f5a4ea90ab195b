"""What is static of another library's model, in a layer's field."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import dict_map, is_inexact, is_random_key
from ..components.nodes import Path, path_string
from ..core import Constant
from ..core.pickling import picklable

_KINDS = {"f": jnp.float32, "V": jnp.float32, "c": jnp.complex64, "i": jnp.int32, "u": jnp.uint32, "b": jnp.bool}


class Template(Constant):
    """A model of another library with shapes in place of its arrays: equal for two models of one architecture."""

    def __init__(self, model: Any):
        super().__init__({"model": model.model if isinstance(model, Template) else jax.tree.map(_shape, model)})

    @property
    def model(self) -> Any:
        """The model, its arrays as `jax.ShapeDtypeStruct`s, without their precision."""
        return self.value["model"]

    def __reduce__(self):
        return Template, (picklable(self.model),)

    def _as_text(self, exact: bool) -> str:
        model = self.model[0] if type(self.model) is tuple else self.model
        return f"<{type(model).__name__}>"


def _shape(x: Any) -> Any:
    if not is_array(x) or isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype if is_random_key(x) else _KINDS[x.dtype.kind])


def is_array(x: Any) -> bool:
    """Whether `x` is an array of JAX, one of NumPy's in floating point, as in Equinox, or stands for one."""
    return isinstance(x, jax.Array | jax.ShapeDtypeStruct) or (isinstance(x, np.ndarray | np.generic) and is_inexact(x))


def as_arrays(tree: Any) -> Any:
    """The arrays of a Constant as JAX's."""
    return dict_map(lambda x: x if is_random_key(x) else jnp.asarray(x), tree)


def require_fit(expected: Any, given: Any, problem: str) -> None:
    """Raise `ValueError`, with the first difference, where given arrays have not the expected paths and shapes."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        return {path_string(path): jnp.shape(x) for path, x in paths(tree)}

    ours, theirs = shapes(expected), shapes(given)
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        if ours.get(path) != theirs.get(path):
            texts = [str(found[path]) if path in found else "not there" for found in (ours, theirs)]
            raise ValueError(f"{problem}: `{path}` should be {texts[0]}, and is {texts[1]}")


def paths(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything in nested dicts that is no dict, with its path."""
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, child in tree.items():
        yield from paths(child, (*path, name))


def each(f: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`f` of everything in nested dicts that is no dict, and of what is there in others."""
    if not isinstance(tree, Mapping):
        return f(tree, *others)
    return {name: each(f, child, *(other[name] for other in others)) for name, child in tree.items()}
