"""Layout: the static description of a flat vector, path by path."""

import fnmatch
import itertools
import math
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Path = tuple[Hashable, ...]

ARRAY, DICT, LIST, TUPLE, NONE = "array", "dict", "list", "tuple", "none"


class Leaf(NamedTuple):
    """One array of a layout: where it lies in the flat vector, and what it is."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def path_string(path: Path) -> str:
    """`("layer_0", "weight")` as `"layer_0.weight"`."""
    return ".".join(map(str, path))


class Layout:
    """A static, hashable description: path -> (offset, shape, dtype).

    Layouts are interned: two built from equal structures, in the same order, are the same object. They therefore
    compare and hash by identity, at no cost, also as static arguments of `jax.jit`, and also after pickling.

    The order of the components is the declared order (the insertion order of dicts). JAX sorts dicts whenever
    they pass through it, so `ravel` goes by path and takes dicts in any order.

    >>> import jax.numpy as jnp
    >>> layout = Layout.of({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    >>> layout.size, layout.slice("b")
    (9, slice(6, 9, None))
    >>> layout.unravel(jnp.arange(9.0))["b"]
    Array([6., 7., 8.], dtype=float32)
    """

    container: Any  # ARRAY, DICT, LIST, TUPLE, NONE, a NamedTuple class, or the PyTreeDef of one registered node
    children: Mapping[Hashable, "Layout"]  # in declared order
    shape: tuple[int, ...]
    dtype: np.dtype | None
    size: int

    _interned: "weakref.WeakValueDictionary[Hashable, Layout]" = weakref.WeakValueDictionary()
    _lock = threading.Lock()

    def __new__(cls, container: Any, children: Mapping[Hashable, "Layout"] = {}, shape=(), dtype=None) -> "Layout":
        signature = (container, tuple(children.items()), shape, dtype)
        with cls._lock:
            self = cls._interned.get(signature)
            if self is None:
                self = super().__new__(cls)
                size = math.prod(shape) if container == ARRAY else sum(c.size for c in children.values())
                vars(self).update(container=container, children=dict(children), shape=shape, dtype=dtype, size=size)
                cls._interned[signature] = self
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Layout is immutable")

    def __reduce__(self):
        return _remake, (self.container, list(self.children.items()), self.shape, self.dtype)

    def __copy__(self) -> "Layout":
        return self

    def __deepcopy__(self, memo) -> "Layout":
        return self

    # --- construction ---------------------------------------------------------------------------------------

    @classmethod
    def of(cls, tree: Any) -> "Layout":
        """The layout of a pytree of floating-point arrays (or of `jax.ShapeDtypeStruct`s).

        Dicts, lists, tuples, NamedTuples, `None` and every registered pytree are containers. Raises `TypeError`,
        with the path, at an integer, boolean, key, string or callable leaf (these belong in the state), and at
        real beside complex leaves.
        """
        layout = cls._of(tree, ())
        kinds = {np.issubdtype(leaf.dtype, np.complexfloating): leaf for leaf in layout.leaves}
        if len(kinds) == 2:
            raise TypeError(
                f"`{path_string(kinds[False].path)}` is real and `{path_string(kinds[True].path)}` is complex: one "
                "flat vector cannot hold both; store the complex one as its real and imaginary parts"
            )
        return layout

    @classmethod
    def _of(cls, node: Any, path: Path) -> "Layout":
        layout = getattr(node, "layout", None)
        if isinstance(layout, Layout):  # a ComponentVector inside a tree
            return layout
        if hasattr(node, "dtype") and hasattr(node, "shape"):
            return cls(ARRAY, {}, tuple(node.shape), _parameter_dtype(node, path))
        if isinstance(node, complex | float) and not isinstance(node, np.generic):
            return cls(ARRAY, {}, (), jax.dtypes.canonicalize_dtype(type(node)))
        one_level = open_container(node)
        if one_level is None:
            raise TypeError(
                f"`{path_string(path)}` is {_describe(node)}, not a floating-point array: parameters are arrays of "
                "floating-point numbers; keep everything else in the state or in a field of the layer"
            )
        container, items = one_level
        return cls(container, {key: cls._of(child, (*path, key)) for key, child in items})

    # --- reading --------------------------------------------------------------------------------------------

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every array in order, each with its path, offset, shape and dtype."""
        out: list[Leaf] = []
        self._collect((), 0, out)
        return tuple(out)

    def _collect(self, path: Path, offset: int, out: list[Leaf]) -> int:
        if self.container == ARRAY:
            out.append(Leaf(path, offset, self.shape, self.dtype))
            return offset + self.size
        for key, child in self.children.items():
            offset = child._collect((*path, key), offset, out)
        return offset

    @cached_property
    def offsets(self) -> Mapping[Hashable, int]:
        """Where each child starts, relative to this layout."""
        starts = itertools.accumulate((c.size for c in self.children.values()), initial=0)
        return dict(zip(self.children, starts, strict=False))

    @cached_property
    def flat_dtype(self) -> np.dtype:
        """The dtype of the flat vector: that of its leaves (the default float type where there are none).

        Raises `ValueError` where the leaves have several floating-point types.
        """
        first: dict[np.dtype, Leaf] = {}
        for leaf in self.leaves:
            first.setdefault(leaf.dtype, leaf)
        if len(first) > 1:
            a, b = itertools.islice(first.values(), 2)
            raise ValueError(
                f"`{path_string(a.path)}` is {a.dtype} and `{path_string(b.path)}` is {b.dtype}: say which type the "
                "flat vector shall have, `dtype=...`; the leaves come back in their own types"
            )
        return next(iter(first), np.dtype(jax.dtypes.canonicalize_dtype(float)))

    @property
    def is_sequence(self) -> bool:
        return self.container in (LIST, TUPLE)

    def find(self, path: str | Path | Hashable) -> tuple[int, "Layout", Path]:
        """Offset, layout and full path of the component at `"a.b"` or `("a", "b")`.

        A key that holds dots itself is found first. Raises `KeyError`, naming what there is, where nothing is found.
        """
        keys = list(path) if isinstance(path, tuple) else [path]
        offset, node, found = 0, self, ()
        while keys:
            key = keys.pop(0)
            if key not in node.children and isinstance(key, str):
                key, keys = node._head(key, keys)
            if key not in node.children:
                where = f"`{path_string(found)}` has" if found else "there is"
                names = ", ".join(map(str, node.children)) or "nothing inside"
                raise KeyError(f"{where} no component {key!r}; what there is: {names}")
            offset, node, found = offset + node.offsets[key], node.children[key], (*found, key)
        return offset, node, found

    def _head(self, key: str, rest: list[Hashable]) -> tuple[Hashable, list[Hashable]]:
        """Split `"a.b.c"` after the longest head that is a key here; digits index sequences."""
        parts = key.split(".")
        for i in range(len(parts), 0, -1):
            head: Hashable = ".".join(parts[:i])
            if self.is_sequence and str(head).isdigit():
                head = int(head)
            if head in self.children:
                return head, ([".".join(parts[i:])] if i < len(parts) else []) + rest
        return key, rest

    def slice(self, path: str | Path) -> slice:
        """The place of a component in the flat vector."""
        offset, node, _ = self.find(path)
        return slice(offset, offset + node.size)

    def index(self, path: str | Path) -> np.ndarray:
        """The indices of a component in the flat vector, in the component's shape (flat for a sub-tree)."""
        offset, node, _ = self.find(path)
        shape = node.shape if node.container == ARRAY else (node.size,)
        return np.arange(offset, offset + node.size).reshape(shape)

    def mask(self, *patterns: str) -> np.ndarray:
        """A boolean vector `(n,)`, true at every leaf whose path, or a head of it, matches one of the patterns.

        Patterns may hold `*` and `?`: `"*.bias"`, `"layer_0"`. Raises `KeyError` for a pattern that matches nothing.
        """
        out = np.zeros(self.size, bool)
        for pattern in patterns:
            matched = [leaf for leaf in self.leaves if _matches(leaf.path, pattern)]
            if not matched:
                names = ", ".join(path_string(leaf.path) for leaf in self.leaves[:8])
                raise KeyError(f"no component matches {pattern!r}; the first ones are: {names}")
            for leaf in matched:
                out[leaf.offset : leaf.offset + leaf.size] = True
        return out

    def labels(self) -> list[str]:
        """A name for every number: `"layer_0.weight[0,3]"`."""
        out = []
        for leaf in self.leaves:
            name = path_string(leaf.path)
            if leaf.shape == ():
                out.append(name)
            else:
                out += [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(leaf.shape)]
        return out

    def astype(self, dtype) -> "Layout":
        """The same layout with every leaf recorded as `dtype`."""
        if self.container == ARRAY:
            return Layout(ARRAY, {}, self.shape, np.dtype(jax.dtypes.canonicalize_dtype(dtype)))
        return Layout(self.container, {key: child.astype(dtype) for key, child in self.children.items()})

    def __repr__(self) -> str:
        return f"Layout({self.summary()})"

    def summary(self, most: int = 6) -> str:
        """`9 numbers: w (2, 3), b (3,)`, with at most `most` components."""
        names = [f"{path_string(leaf.path) or 'value'} {leaf.shape}" for leaf in self.leaves[:most]]
        more = len(self.leaves) - most
        return f"{self.size} numbers: " + ", ".join(names) + (f", and {more} more" if more > 0 else "")

    # --- the safe map ---------------------------------------------------------------------------------------

    def check(self, flat: Any) -> jax.Array:
        """`flat` as an array, if it is a vector of this layout's length and kind; otherwise `ValueError` or `TypeError`."""
        if hasattr(flat, "layout") and isinstance(flat.layout, Layout):
            self.require_same(flat.layout)
            flat = flat.data
        flat = jnp.asarray(flat)
        if flat.shape != (self.size,):
            raise ValueError(
                f"expected a flat vector of shape ({self.size},), got shape {flat.shape}; the layout has {self.summary()}"
            )
        return self.check_kind(flat)

    def check_kind(self, flat: jax.Array) -> jax.Array:
        """`flat` itself, if its numbers are of this layout's kind, real or complex floating point; otherwise `TypeError`."""
        kind = np.complexfloating if self._is_complex else np.floating
        if self.leaves and not jnp.issubdtype(flat.dtype, kind):
            raise TypeError(
                f"expected a vector of {kind.__name__} numbers, got {flat.dtype}; convert it explicitly if that is "
                f"meant. The layout has {self.summary()}"
            )
        return flat

    @cached_property
    def _is_complex(self) -> bool:
        return any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in self.leaves)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(leaf.size for leaf in self.leaves)

    def unravel(self, flat: Any) -> Any:
        """The tree of a flat vector `(n,)`, every leaf in its recorded shape and dtype.

        One `lax.split`, whose gradient is one `concatenate`. Raises `ValueError` for another length or rank,
        `TypeError` for integers or booleans, and for complex numbers where real ones are expected. A vector of
        another precision is cast to the recorded dtypes.
        """
        flat = self.check(flat)
        if not self.leaves:
            return self.rebuild([])
        parts = lax.split(flat, self._sizes) if len(self.leaves) > 1 else [flat]
        return self.rebuild([p.reshape(leaf.shape).astype(leaf.dtype) for p, leaf in zip(parts, self.leaves, strict=True)])

    def rebuild(self, leaves: Iterable[Any]) -> Any:
        """The tree of this layout with the given leaves, one for each array, in order."""
        return self._rebuild(iter(leaves))

    def _rebuild(self, leaves: Iterator[Any]) -> Any:
        if self.container == ARRAY:
            return next(leaves)
        return close_container(self.container, {key: child._rebuild(leaves) for key, child in self.children.items()})

    def ravel(self, tree: Any, dtype=None) -> jax.Array:
        """The flat vector `(n,)` of a tree of this layout; the inverse of `unravel`. Goes by path: dicts in any order.

        Raises `ValueError` naming the first path that is missing, unknown or of another shape, `TypeError` at
        leaves that are no floating-point arrays.
        """
        if hasattr(tree, "layout") and isinstance(tree.layout, Layout):
            tree = tree.tree()
        dtype = self.flat_dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
        got = Layout.of(tree)
        if got is not self:
            self.require_same(got, order=False, dtypes=False)
        leaves = self.collect(tree)
        if not leaves:
            return jnp.zeros(0, dtype)
        for leaf, x in zip(self.leaves, leaves, strict=True):
            if not self._is_complex and jnp.iscomplexobj(x):
                raise TypeError(f"`{path_string(leaf.path)}` is complex, where the layout has real numbers")
        if any(isinstance(x, jax.Array) for x in leaves):
            return jnp.concatenate([jnp.asarray(x).astype(dtype).reshape(-1) for x in leaves])
        return jnp.asarray(np.concatenate([np.asarray(x).astype(dtype).reshape(-1) for x in leaves]))

    def collect(self, tree: Any) -> list[Any]:
        """The leaves of a tree of this layout's paths, in this layout's order."""
        if self.container == ARRAY:
            return [tree]
        if hasattr(tree, "layout") and isinstance(tree.layout, Layout):
            tree = tree.tree()
        items = dict(open_container(tree)[1])
        return [leaf for key, child in self.children.items() for leaf in child.collect(items[key])]

    def wrap(self, flat: Any) -> Any:
        """The ComponentVector of this layout with the given data: puts the names back on a plain array."""
        from .vector import ComponentVector

        return ComponentVector(flat.data if isinstance(flat, ComponentVector) else flat, self)

    def zeros(self, dtype=None) -> Any:
        """A ComponentVector of zeros."""
        return self.wrap(jnp.zeros(self.size, self.flat_dtype if dtype is None else dtype))

    # --- comparing ------------------------------------------------------------------------------------------

    def difference(self, other: "Layout", *, order: bool = True, dtypes: bool = True, path: Path = ()) -> str | None:
        """The first difference between this layout (the expected one) and another, as a sentence; `None` if there is none."""
        if self is other:
            return None
        here = path_string(path) or "the root"
        if self.container != other.container and not (self._named and other._named):
            return f"`{here}` should be {self._noun()}, got {other._noun()}"
        if self.container == ARRAY and self.shape != other.shape:
            return f"`{here}` should have shape {self.shape}, got {other.shape}"
        if self.container == ARRAY:
            return f"`{here}` should be {self.dtype}, got {other.dtype}" if dtypes and self.dtype != other.dtype else None
        for key in self.children:
            if key not in other.children:
                return f"`{path_string((*path, key))}` is missing"
        for key in other.children:
            if key not in self.children:
                return f"`{path_string((*path, key))}` is unknown"
        for key, child in self.children.items():
            found = child.difference(other.children[key], order=order, dtypes=dtypes, path=(*path, key))
            if found:
                return found
        if order and list(self.children) != list(other.children):
            return (
                f"`{here}` holds the same components in another order: expected {', '.join(map(str, self.children))}, "
                f"got {', '.join(map(str, other.children))}; `ComponentVector.from_tree(tree, like=layout)` puts them in order"
            )
        return None

    def require_same(self, other: "Layout", *, order: bool = True, dtypes: bool = False) -> None:
        """Raise `ValueError` with the first difference, if there is one."""
        found = self.difference(other, order=order, dtypes=dtypes)
        if found:
            raise ValueError(f"the layouts differ: {found}")

    @property
    def _named(self) -> bool:
        return self.container not in (ARRAY, LIST, TUPLE, NONE)

    def _noun(self) -> str:
        if self.container == ARRAY:
            return f"an array of shape {self.shape}"
        return "None" if self.container == NONE else f"a {self.container} of {', '.join(map(str, self.children)) or 'nothing'}"


def _remake(container, children, shape, dtype) -> Layout:
    return Layout(container, dict(children), shape, dtype)


def open_container(node: Any) -> tuple[Any, Sequence[tuple[Hashable, Any]]] | None:
    """What kind of container `node` is, and its items by key, one level deep; `None` if it is a leaf."""
    if node is None:
        return NONE, []
    if isinstance(node, dict):
        return DICT, list(node.items())
    if type(node) is list:
        return LIST, list(enumerate(node))
    if type(node) is tuple:
        return TUPLE, list(enumerate(node))
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node), list(zip(node._fields, node, strict=True))
    treedef = jax.tree.structure(node, is_leaf=lambda x: x is not node)
    if jax.tree_util.treedef_is_leaf(treedef):
        return None
    items = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return treedef, [(_key(path[0]), child) for path, child in items]


def close_container(container: Any, children: dict[Hashable, Any]) -> Any:
    """The inverse of `open_container`."""
    if container == NONE:
        return None
    if container == DICT:
        return children
    if container == LIST:
        return list(children.values())
    if container == TUPLE:
        return tuple(children.values())
    if isinstance(container, type):
        return container(**children)
    return jax.tree.unflatten(container, list(children.values()))


def _key(entry: Any) -> Hashable:
    """The plain name or number in an entry of JAX's key paths."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _matches(path: Path, pattern: str) -> bool:
    """Whether the path, or a head of whole segments of it, matches the pattern."""
    return any(fnmatch.fnmatchcase(path_string(path[: i + 1]), pattern) for i in range(len(path)))


def _parameter_dtype(x: Any, path: Path) -> np.dtype:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"`{path_string(path)}` has dtype {x.dtype}: parameters are floating-point numbers; integers, booleans and "
            "random keys belong in the state (`init_state`)"
        )
    return np.dtype(jax.dtypes.canonicalize_dtype(x.dtype))


def _describe(x: Any) -> str:
    if isinstance(x, bool | int | str):
        return f"the {type(x).__name__} {x!r}"
    return f"of type {type(x).__name__}"
