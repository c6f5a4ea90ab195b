"""ComponentVector: one flat vector of numbers and the layout that names them."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._compat import made_in_current_trace
from .arithmetic import NamedArithmetic
from .layout import ARRAY, DICT, LIST, Layout, Path, path_string


@jax.tree_util.register_pytree_with_keys_class
class ComponentVector(NamedArithmetic):
    """A flat vector whose parts have names: `data`, an array `(n,)`, and `layout`, which is static.

    `ComponentVector(a=1.0, b=[1.0, 2.0], c={"d": jnp.ones((2, 3))})` builds one from its components, in the order
    given; `ComponentVector.from_tree(tree)` from any pytree of floating-point arrays; `ComponentVector(data, layout)`
    from the two parts. In the first form Python's numbers, and lists of them, are floats, integer literals included.

    For JAX it is a pytree with one leaf: `jax.grad`, `vmap`, `scan`, optax and optimistix give back
    ComponentVectors. Components are read with `cv.c.d`, `cv["c"]["d"]` or `cv["c.d"]`; sub-trees come back as
    ComponentVectors. Vectors are immutable: `replace`, `at`, `merge` and `select` return new ones. The component axis
    is the last one, so that data of shape `(batch, n)` is a batch of vectors.

    Arithmetic with numbers, with arrays `(n,)` on the right, with NumPy arrays on either side and with vectors of the
    same layout keeps the names; another layout raises `ValueError`. `jnp` functions and comparisons give plain
    arrays, as does a JAX array on the left (`layout.wrap` puts the names back); `jax.lax` functions take `cv.data`.

    >>> u = ComponentVector(S=990, I=10, R=0)
    >>> u.S, u["I"]
    (Array(990., dtype=float32), Array(10., dtype=float32))
    >>> (u / 1000).replace(R=1)
    ComponentVector(S=0.99, I=0.01, R=1)
    """

    __slots__ = ("__weakref__", "_parts", "data", "layout")

    data: jax.Array
    layout: Layout

    def __init__(self, *args: Any, **components: Any):
        if len(args) == 2 and not components:
            data, layout = args
            data = layout.check_kind(jnp.asarray(data))
            if data.ndim == 0 or data.shape[-1] != layout.size:
                raise ValueError(
                    f"expected data of shape (..., {layout.size}), got {data.shape}; the layout has {layout.summary()}"
                )
        elif len(args) == 1 and isinstance(args[0], Mapping) and not components:
            data, layout = _parts_of(_numbers(dict(args[0])))
        elif not args:
            for name in components:
                refuse_reserved(name)
            data, layout = _parts_of(_numbers(components))
        else:
            raise TypeError("ComponentVector takes components by keyword, one dict of them, or (data, layout)")
        _fill(self, data, layout)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a ComponentVector is immutable: use cv.replace({name}=...) or cv.at[{name!r}].set(...)")

    @classmethod
    def from_tree(cls, tree: Any, dtype=None, like: "Layout | ComponentVector | None" = None) -> "ComponentVector":
        """The flat vector of a pytree of floating-point arrays.

        `dtype` is the type of the flat vector; where the leaves have several types it must be given, and they come
        back in their own. `like` (a Layout or a ComponentVector) fixes order and shapes: the tree is taken by path.
        Raises `TypeError` with the path for leaves that are no parameters, `ValueError` for other paths than `like`'s.
        """
        layout = Layout.of(tree) if like is None else getattr(like, "layout", like)
        return _make(layout.ravel(tree, dtype), layout)

    # --- as a pytree ----------------------------------------------------------------------------------------

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.GetAttrKey("data"), self.data),), self.layout

    def tree_flatten(self):
        return (self.data,), self.layout

    @classmethod
    def tree_unflatten(cls, layout: Layout, children) -> "ComponentVector":
        return _make(children[0], layout)  # never validated: transforms put other things than arrays into the leaf

    def __reduce__(self):
        return ComponentVector, (np.asarray(self.data), self.layout)

    def __copy__(self) -> "ComponentVector":
        return self

    def __deepcopy__(self, memo) -> "ComponentVector":
        return self

    # --- as an array ----------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.data)

    @property
    def ndim(self) -> int:
        return jnp.ndim(self.data)

    @property
    def size(self) -> int:
        return jnp.size(self.data)

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.data)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.data, dtype=dtype) if copy else np.asarray(self.data, dtype=dtype)

    def __len__(self) -> int:
        return len(self.layout.children) if self.layout.is_sequence else self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def astype(self, dtype) -> "ComponentVector":
        """The same vector, with its data and every leaf of its layout in another floating-point type."""
        return _make(self.data.astype(dtype), self.layout.astype(dtype))

    # --- reading --------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ComponentVector.__slots__:
            raise AttributeError(name)
        try:
            return self._get(name)
        except KeyError:
            names = ", ".join(map(str, self.layout.children))
            raise AttributeError(f"there is no component {name!r}; what there is: {names}") from None

    def __getitem__(self, key: Any) -> Any:
        """A component by name or path; an item of a sequence, or else a number, by integer; NumPy indexing of the data."""
        if isinstance(key, str) or (isinstance(key, tuple) and any(isinstance(k, str) for k in key)):
            return self._get(key)
        if isinstance(key, int) and self.layout.is_sequence:
            return self._get(range(len(self.layout.children))[key])
        return self.data[key]

    def _get(self, path: Hashable) -> Any:
        if path in self.layout.children:
            return self._child(path)
        _, _, keys = self.layout.find(path)
        out: Any = self
        for key in keys:
            out = out._child(key)
        return out

    def _child(self, key: Hashable) -> Any:
        """One component. On a traced vector the whole level is split once: see `_split_level`."""
        if isinstance(self.data, jax.core.Tracer):
            return self._split_level()[key]
        layout, start = self.layout.children[key], self.layout.offsets[key]
        return _view(lax.slice_in_dim(jnp.asarray(self.data), start, start + layout.size, axis=-1), layout)

    def _split_level(self) -> dict[Hashable, Any]:
        """All components of this level by one `lax.split`, kept while the trace that made the data goes on.

        A slice for each access would cost a whole vector each in the gradient; the gradient of one split is one
        `concatenate`.
        """
        if self._parts is not None:
            return self._parts
        sizes = [child.size for child in self.layout.children.values()]
        parts = lax.split(self.data, sizes, axis=self.data.ndim - 1) if len(sizes) > 1 else [self.data]
        out = {k: _view(p, child) for p, (k, child) in zip(parts, self.layout.children.items(), strict=True)}
        if made_in_current_trace(self.data):
            object.__setattr__(self, "_parts", out)
        return out

    def tree(self) -> Any:
        """The nested tree, in the containers and dtypes it was built from: one `lax.split`."""
        return self.layout.unravel(self.data)

    def unpack(self, *names: str) -> tuple[Any, ...]:
        """Several components at once: `a, b = cv.unpack("a", "b")`."""
        return tuple(self[name] for name in names)

    def keys(self):
        """The names at the root."""
        return self.layout.children.keys()

    def values(self) -> list[Any]:
        """The components at the root."""
        return [self._get(key) for key in self.layout.children]

    def items(self) -> list[tuple[Hashable, Any]]:
        """Names and components at the root."""
        return [(key, self._get(key)) for key in self.layout.children]

    def __contains__(self, path: Any) -> bool:
        try:
            self.layout.find(path)
        except KeyError:
            return False
        return True

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self.layout.children)]

    def labels(self) -> list[str]:
        """A name for every number: `"layer_0.weight[0,3]"`."""
        return self.layout.labels()

    def select(self, *names: str) -> "ComponentVector":
        """A vector of the named root components, in the order asked for. Raises `ValueError` for a name given twice."""
        if len(set(names)) < len(names):
            raise ValueError(f"a component is asked for twice: {', '.join(names)}")
        return ComponentVector.from_tree({name: self[name] for name in names}, dtype=self.dtype)

    def equals(self, other: Any) -> bool:
        """Whether the other vector has the same layout and the same numbers."""
        same = isinstance(other, ComponentVector) and self.layout is other.layout
        return same and np.array_equal(np.asarray(self), np.asarray(other))

    # --- updating -------------------------------------------------------------------------------------------

    def replace(self, **components: Any) -> "ComponentVector":
        """A new vector with some components replaced, nested by dicts: `cv.replace(a=1.0, c={"b": x})`.

        The new values are broadcast to the shapes of the old ones. Raises `KeyError` for unknown names, `ValueError`
        for shapes that do not fit.
        """
        return self._with(_replaced(self.tree(), components, ()))

    @property
    def at(self) -> "_At":
        """Functional updates by path: `cv.at["c.a"].set(0.0)`, `.add`, `.multiply`, `.apply`."""
        return _At(self)

    def merge(self, **components: Any) -> "ComponentVector":
        """A new vector with components replaced, whatever their shape, or appended."""
        for name in components:
            refuse_reserved(name)
        if self.layout.container != DICT:
            raise TypeError(f"merge needs named components, got {self.layout.summary()}")
        return ComponentVector.from_tree({**self.tree(), **_numbers(components)}, dtype=self.dtype)

    def zeros_like(self) -> "ComponentVector":
        """Zeros with the same names."""
        return _make(jnp.zeros_like(self.data), self.layout)

    def copy(self) -> "ComponentVector":
        """A vector with its own copy of the data."""
        return _make(jnp.array(self.data, copy=True), self.layout)

    def _with(self, tree: Any) -> "ComponentVector":
        return _make(self.layout.ravel(tree, self.dtype), self.layout)

    # --- showing --------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if not isinstance(self.data, jax.Array | np.ndarray) or isinstance(self.data, jax.core.Tracer):
            return f"ComponentVector({self.data}, {self.layout!r})"
        if self.data.ndim != 1:
            return f"ComponentVector({_short(self.data)}, {self.layout!r})"
        return f"ComponentVector({_inside(np.asarray(self.data), self.layout)})"


_RESERVED = frozenset(name for name in dir(ComponentVector) if not name.startswith("_"))


def refuse_reserved(name: str) -> None:
    """Raise `ValueError` if a component of this name would hide an attribute of ComponentVector."""
    if name in _RESERVED:
        raise ValueError(f"{name!r} is a method or property of ComponentVector; choose another name, such as '{name}_'")


def _fill(cv: ComponentVector, data: Any, layout: Layout) -> ComponentVector:
    for name, value in (("data", data), ("layout", layout), ("_parts", None)):
        object.__setattr__(cv, name, value)
    return cv


def _make(data: Any, layout: Layout) -> ComponentVector:
    return _fill(object.__new__(ComponentVector), data, layout)


def _parts_of(tree: Any) -> tuple[jax.Array, Layout]:
    layout = Layout.of(tree)
    return layout.ravel(tree), layout


def _view(part: jax.Array, layout: Layout) -> Any:
    """A component of a vector, or of a batch of them, as an array or a ComponentVector."""
    if layout.container == ARRAY:
        return layout.check_kind(part).reshape(part.shape[:-1] + layout.shape).astype(layout.dtype)
    return None if layout.container == "none" else _make(part, layout)


def _numbers(node: Any) -> Any:
    """Python's numbers, and (nested) lists of them, as arrays of the default float type; everything else as it is."""
    if isinstance(node, dict):
        return {key: _numbers(child) for key, child in node.items()}
    if isinstance(node, list | tuple) and not hasattr(node, "_fields"):
        if _all_numbers(node):
            return np.asarray(node, dtype=jax.dtypes.canonicalize_dtype(np.result_type(np.asarray(node), float)))
        return type(node)(map(_numbers, node))
    if isinstance(node, int | float | complex) and not isinstance(node, bool | np.generic):
        return np.asarray(node, dtype=jax.dtypes.canonicalize_dtype(np.result_type(type(node), float)))
    return node


def _all_numbers(node: Any) -> bool:
    if isinstance(node, list | tuple):
        return all(map(_all_numbers, node))
    return isinstance(node, int | float | complex) and not isinstance(node, bool)


def _replaced(node: Any, new: Any, path: Path) -> Any:
    if isinstance(node, dict) and isinstance(new, Mapping):
        for key in new:
            if key not in node:
                raise KeyError(f"there is no component `{path_string((*path, key))}`; merge(...) adds new ones")
        return {k: _replaced(v, new[k], (*path, k)) if k in new else v for k, v in node.items()}
    if isinstance(new, ComponentVector):
        new = new.tree()
    if not hasattr(node, "shape"):
        Layout.of(node).require_same(Layout.of(_numbers(new)), order=False)
        return new
    new = jnp.asarray(new)
    if jnp.iscomplexobj(new) and not jnp.iscomplexobj(node):
        raise TypeError(f"`{path_string(path)}` is real, got a complex value")
    try:
        return jnp.broadcast_to(new.astype(node.dtype), node.shape)
    except ValueError:
        raise ValueError(f"`{path_string(path)}` has shape {node.shape}, got {new.shape}") from None


class _At:
    """`cv.at[path]`, and then one of `set`, `add`, `multiply`, `apply`."""

    def __init__(self, cv: ComponentVector, path: Hashable = None):
        self._cv, self._path = cv, path

    def __getitem__(self, path: Hashable) -> "_At":
        return _At(self._cv, path)

    def apply(self, f: Callable[[Any], Any]) -> ComponentVector:
        """`f` of every array at the path."""
        _, node, path = self._cv.layout.find(self._path)
        start, tree = self._cv.layout.find(self._path)[0], self._cv.tree()
        leaves = self._cv.layout.collect(tree)
        inside = range(start, start + node.size)
        for i, leaf in enumerate(self._cv.layout.leaves):
            if leaf.path[: len(path)] == path and (leaf.size == 0 or leaf.offset in inside):
                leaves[i] = _replaced(leaves[i], f(leaves[i]), leaf.path)
        return self._cv._with(self._cv.layout.rebuild(leaves))

    def set(self, value: Any) -> ComponentVector:
        """The value, broadcast, at the path; a tree of the path's names where the path is a sub-tree."""
        _, node, path = self._cv.layout.find(self._path)
        if node.container == ARRAY or jnp.ndim(value) == 0:
            return self.apply(lambda _: value)
        values = iter(node.collect(value.tree() if isinstance(value, ComponentVector) else value))
        node.require_same(Layout.of(value), order=False)
        return self.apply(lambda _: next(values))

    def add(self, value: Any) -> ComponentVector:
        return self.apply(lambda x: x + value)

    def multiply(self, value: Any) -> ComponentVector:
        return self.apply(lambda x: x * value)


def concat(*vectors: ComponentVector) -> ComponentVector:
    """One vector with the components of several. Raises `ValueError` where two of them share a name.

    >>> concat(ComponentVector(a=1), ComponentVector(b=[2, 3]))
    ComponentVector(a=1, b=[2, 3])
    """
    out: dict[str, Any] = {}
    for cv in vectors:
        for name, value in cv.tree().items():
            if name in out:
                raise ValueError(f"component {name!r} stands in two of the vectors; rename one, or nest them by keyword")
            out[name] = value
    return ComponentVector.from_tree(out, dtype=jnp.result_type(*(cv.dtype for cv in vectors)) if vectors else None)


def _inside(data: np.ndarray, layout: Layout) -> str:
    """`a=1, b=[2, 3], c=(d=float32[2,3])`: the components as they print."""
    entries = []
    for key, child in layout.children.items():
        part = data[..., layout.offsets[key] :][..., : child.size]
        if child.container == ARRAY:
            text = _short(part.reshape(child.shape))
        elif child.container == "none":
            text = "None"
        else:
            left, right = "[]" if child.container == LIST else "()"
            text = f"{left}{_inside(part, child)}{right}"
        entries.append(text if layout.is_sequence else f"{key}={text}")
    if layout.container == ARRAY:
        return _short(data.reshape(layout.shape))
    return ", ".join(entries)


def _short(x: Any) -> str:
    """Numbers where there are few, else the type and shape."""
    x = np.asarray(x)
    if x.size <= 6 and x.ndim <= 1:
        return f"[{', '.join(f'{v:.4g}' for v in x)}]" if x.ndim else f"{x.item():.4g}"
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"
