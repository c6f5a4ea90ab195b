"""Layout: the static description of a flat vector, path by path."""

import fnmatch
import functools
import itertools
import math
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .difference import difference
from .nodes import (
    ARRAY,
    LIST,
    TUPLE,
    Path,
    Static,
    Tied,
    close_container,
    is_module,
    open_container,
    path_string,
)
from .split import split

_ARRAYS = (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct, jax.core.ShapedArray)


class Leaf(NamedTuple):
    """One array of a layout: where it lies in the flat vector, and what it is."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Path | None = None  # of a tied array: the path of the one whose numbers it shares

    @property
    def size(self) -> int:
        return math.prod(self.shape)


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

    container: Any  # a string or a value of nodes.py, a NamedTuple or dataclass, or the PyTreeDef of one node
    children: Mapping[Hashable, "Layout"]  # in declared order
    shape: tuple[int, ...]
    dtype: np.dtype | None
    size: int

    _interned: ClassVar["weakref.WeakValueDictionary[Hashable, Layout]"] = weakref.WeakValueDictionary()
    _lock = threading.RLock()

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
    def of(cls, tree: Any, ties: Iterable[Iterable[str | Path]] = ()) -> "Layout":
        """The layout of a pytree of floating-point arrays (or of `jax.ShapeDtypeStruct`s).

        Dicts, lists, tuples, NamedTuples, dataclasses, `None` and every registered pytree are containers. In an
        Equinox module everything that is no array is kept as it is, functions and numbers included. `ties` are groups
        of paths that share their numbers: see `tie`. Raises `TypeError`, with the path, at an integer, boolean, key,
        string or callable leaf elsewhere (these belong in the state), and at real beside complex leaves.
        """
        found: list[tuple[Path, Path]] = []
        layout = cls._of(tree, (), found)
        kinds = {leaf.dtype.kind == "c": leaf for leaf in layout.leaves}
        if len(kinds) == 2:
            raise TypeError(
                f"`{path_string(kinds[False].path)}` is real and `{path_string(kinds[True].path)}` is complex: one "
                "flat vector cannot hold both; store the complex one as its real and imaginary parts"
            )
        return layout.tie(*found, *ties)

    @classmethod
    def _of(cls, node: Any, path: Path, ties: list[tuple[Path, Path]], in_module: bool = False) -> "Layout":
        if not isinstance(node, dict) and isinstance(node, _ARRAYS):
            return cls(ARRAY, {}, tuple(node.shape), _parameter_dtype(node, path, in_module))
        layout = getattr(node, "layout", None)
        if isinstance(layout, Layout):  # a ComponentVector inside a tree
            ties += [((*path, *owner), (*path, *tied)) for owner, tied in layout.ties]
            return layout.untied
        if isinstance(node, complex | float) and not in_module:
            return cls(ARRAY, {}, (), jax.dtypes.canonicalize_dtype(type(node)))
        one_level = open_container(node)
        if one_level is None and in_module and isinstance(node, Hashable):
            return cls(Static(type(node), node))
        if one_level is None:
            raise TypeError(
                f"`{path_string(path)}` is {_describe(node)}, not a floating-point array: parameters are arrays of "
                "floating-point numbers; keep everything else in the state or in a field of the layer"
            )
        container, items = one_level
        inside = in_module or is_module(container)
        return cls(container, {key: cls._of(child, (*path, key), ties, inside) for key, child in items})

    def tie(self, *groups: Iterable[str | Path]) -> "Layout":
        """The same layout with arrays that share their numbers: `layout.tie(("encoder.weight", "decoder.weight"))`.

        Each group is a tuple of paths of arrays, or of sub-trees with equal layouts. The numbers stand once in the flat
        vector, at the first of them in declared order. Raises `ValueError` for different shapes or dtypes.
        """
        groups = list(map(tuple, groups))
        if not groups:
            return self
        leaves = {leaf.path: leaf for leaf in self.leaves}
        position = {path: i for i, path in enumerate(leaves)}
        owner = {path: leaf.owner or path for path, leaf in leaves.items()}
        for group in groups:
            found = [self.find(path) for path in group]
            if len({node.untied for _, node, _ in found}) > 1:
                texts = " and ".join(f"`{path_string(path)}` ({node.summary()})" for _, node, path in found)
                raise ValueError(f"only equal shapes and dtypes can be tied, got {texts}")
            for leaf in found[0][1].leaves if found else ():
                members = {owner[(*path, *leaf.path)] for _, _, path in found}
                first = min(members, key=position.__getitem__)
                owner = {path: first if root in members else root for path, root in owner.items()}
        return self._tie({path: root for path, root in owner.items() if root != path})

    def _tie(self, owners: Mapping[Path, Path], path: Path = ()) -> "Layout":
        if self.is_array:
            return Layout(Tied(owners[path]) if path in owners else ARRAY, {}, self.shape, self.dtype)
        return Layout(self.container, {key: child._tie(owners, (*path, key)) for key, child in self.children.items()})

    def astype(self, dtype) -> "Layout":
        """The same layout with every leaf recorded as `dtype`, a floating-point type; otherwise `TypeError`."""
        if self.is_array:
            return Layout(self.container, {}, self.shape, _parameter_dtype(jax.ShapeDtypeStruct((), dtype), ("dtype",)))
        return (
            Layout(self.container, {key: child.astype(dtype) for key, child in self.children.items()})
            if self.children
            else self
        )

    # --- reading --------------------------------------------------------------------------------------------

    @property
    def is_array(self) -> bool:
        return self.container == ARRAY or isinstance(self.container, Tied)

    @property
    def is_sequence(self) -> bool:
        return self.container in (LIST, TUPLE)

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every array in order, each with its path, offset, shape and dtype; tied ones with the offset they share."""
        out: list[Leaf] = []
        self._collect((), 0, out, {})
        return tuple(out)

    def _collect(self, path: Path, offset: int, out: list[Leaf], starts: dict[Path, int]) -> int:
        if isinstance(self.container, Tied):
            owner = self.container.owner
            out.append(Leaf(path, starts.get(owner, -1), self.shape, self.dtype, owner))
        elif self.container == ARRAY:
            starts[path] = offset
            out.append(Leaf(path, offset, self.shape, self.dtype))
        for key, child in self.children.items():
            child._collect((*path, key), offset, out, starts)
            offset += child.size
        return offset

    @functools.cached_property
    def blocks(self) -> tuple[Leaf, ...]:
        """The arrays that follow one another in the flat vector: the leaves without the tied ones."""
        return tuple(leaf for leaf in self.leaves if leaf.owner is None)

    @functools.cached_property
    def ties(self) -> tuple[tuple[Path, Path], ...]:
        """Pairs of paths: the array that holds the numbers, and one that shares them."""
        return tuple((leaf.owner, leaf.path) for leaf in self.leaves if leaf.owner is not None)

    @functools.cached_property
    def untied(self) -> "Layout":
        """The layout of the same tree without ties."""
        return self._tie({}) if self.ties else self

    @functools.cached_property
    def offsets(self) -> Mapping[Hashable, int]:
        """Where each child starts, relative to this layout."""
        starts = itertools.accumulate((c.size for c in self.children.values()), initial=0)
        return dict(zip(self.children, starts, strict=False))

    @functools.cached_property
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

    def find(self, path: str | Path | Hashable) -> tuple[int, "Layout", Path]:
        """Offset, layout and full path of the component at `"a.b"` or `("a", "b")`.

        A key that holds dots itself is found first. Raises `KeyError`, naming what there is, where nothing is found.
        """
        keys = list(path) if isinstance(path, tuple) else [path]
        offset, node, found = 0, self, ()
        while keys:
            key, keys = node.head(keys)
            if key not in node.children:
                where = f"`{path_string(found)}` has" if found else "there is"
                names = ", ".join(map(str, node.children)) or "nothing inside"
                raise KeyError(f"{where} no component {key!r}; what there is: {names}")
            offset, node, found = offset + node.offsets[key], node.children[key], (*found, key)
        if isinstance(node.container, Tied):
            offset, node, _ = self.find(node.container.owner)
        return offset, node, found

    def head(self, keys: list[Hashable]) -> tuple[Hashable, list[Hashable]]:
        """The first key of a path and the rest: `"a.b.c"` is split after the longest head that is a key here."""
        key, *rest = keys
        if key in self.children or not isinstance(key, str):
            return key, rest
        parts = key.split(".")
        for i in range(len(parts), 0, -1):
            head: Hashable = ".".join(parts[:i])
            if self.is_sequence and str(head).isdigit():
                head = int(head)
            if head in self.children:
                return head, ([".".join(parts[i:])] if i < len(parts) else []) + rest
        return parts[0], ([".".join(parts[1:])] if len(parts) > 1 else []) + rest

    def slice(self, path: str | Path) -> slice:
        """The place of a component in the flat vector. Raises `ValueError` for a sub-tree that holds a tied array."""
        offset, node, _ = self.find(path)
        if node.ties:
            raise ValueError(f"`{path}` holds a tied array and is not in one piece; `index` gives its indices")
        return slice(offset, offset + node.size)

    def index(self, path: str | Path) -> np.ndarray:
        """The indices of a component in the flat vector, in the component's shape (flat for a sub-tree)."""
        offset, node, path = self.find(path)
        if node.is_array:
            return np.arange(offset, offset + node.size).reshape(node.shape)
        if not node.ties:
            return np.arange(offset, offset + node.size)
        inside = [leaf for leaf in self.leaves if leaf.path[: len(path)] == path]
        return np.concatenate([np.arange(leaf.offset, leaf.offset + leaf.size) for leaf in inside])

    def match(self, pattern: str) -> list[Leaf]:
        """The leaves whose path, or a head of whole segments of it, matches: `"*.bias"`, `"layer_0"`.

        `*` stands for anything, `?` for one character. Raises `KeyError` for a pattern that matches nothing.
        """
        out = [leaf for leaf in self.leaves if any(fnmatch.fnmatchcase(head, pattern) for head in _heads(leaf.path))]
        if not out:
            names = ", ".join(path_string(leaf.path) for leaf in self.leaves[:8])
            raise KeyError(f"no component matches {pattern!r}; the first ones are: {names or 'none'}")
        return out

    def mask(self, *patterns: str) -> np.ndarray:
        """A boolean vector `(n,)`, true at every leaf that matches one of the patterns: see `match`."""
        out = np.zeros(self.size, bool)
        for leaf in itertools.chain.from_iterable(map(self.match, patterns)):
            out[leaf.offset : leaf.offset + leaf.size] = True
        return out

    def labels(self) -> list[str]:
        """A name for every number: `"layer_0.weight[0,3]"`."""
        out = []
        for leaf in self.blocks:
            name = path_string(leaf.path)
            out += [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(leaf.shape)] if leaf.shape else [name]
        return out

    def __repr__(self) -> str:
        return f"Layout({self.summary()})"

    def summary(self, most: int = 6) -> str:
        """`9 numbers: w (2, 3), b (3,)`, with at most `most` components."""
        names = [f"{path_string(leaf.path) or 'value'} {leaf.shape}" for leaf in self.leaves[:most]]
        more = len(self.leaves) - most
        return f"{self.size} numbers: " + ", ".join(names) + (f", and {more} more" if more > 0 else "")

    # --- to a flat vector and back ---------------------------------------------------------------------------

    def check(self, flat: Any) -> jax.Array:
        """`flat` as an array, if it is a vector of this length and kind; otherwise `ValueError` or `TypeError`."""
        layout = layout_of(flat)
        if layout is not None:
            self.require_same(layout)
            flat = flat.data
        flat = jnp.asarray(flat)
        if flat.shape != (self.size,):
            raise ValueError(
                f"expected a flat vector of shape ({self.size},), got shape {flat.shape}; `jax.vmap` goes over a "
                f"batch. The layout has {self.summary()}"
            )
        return self.check_kind(flat)

    def check_kind(self, flat: jax.Array) -> jax.Array:
        """`flat` itself, if its numbers are of this kind, real or complex floating point; otherwise `TypeError`."""
        kind = np.inexact if not self.leaves else np.complexfloating if self._is_complex else np.floating
        if not jnp.issubdtype(flat.dtype, kind):
            raise TypeError(
                f"expected a vector of {kind.__name__} numbers, got {flat.dtype}; convert it explicitly if that is "
                f"meant. The layout has {self.summary()}"
            )
        return flat

    @functools.cached_property
    def _is_complex(self) -> bool:
        return any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in self.leaves)

    @functools.cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(leaf.size for leaf in self.blocks)

    @functools.cached_property
    def block_of(self) -> dict[Path, int]:
        """For every path, which of the `blocks` holds its numbers."""
        position = {leaf.path: i for i, leaf in enumerate(self.blocks)}
        return {leaf.path: position[leaf.owner or leaf.path] for leaf in self.leaves}

    def split(self, flat: Any) -> list[jax.Array]:
        """The blocks of a flat vector `(n,)`, each in its recorded shape and dtype."""
        flat = self.check(flat)
        parts = split(flat, self._sizes) if self.blocks else []
        return [p.reshape(leaf.shape).astype(leaf.dtype) for p, leaf in zip(parts, self.blocks, strict=True)]

    def join(self, blocks: list[Any], dtype=None) -> jax.Array:
        """The flat vector `(n,)` of the blocks; the inverse of `split`."""
        dtype = jax.dtypes.canonicalize_dtype(self.flat_dtype if dtype is None else dtype)
        for leaf, x in zip(self.blocks, blocks, strict=True):
            if not self._is_complex and jnp.iscomplexobj(x):
                raise TypeError(f"`{path_string(leaf.path)}` is complex, where the layout has real numbers")
        if not blocks:
            return jnp.zeros(0, dtype)
        if any(isinstance(x, jax.Array) for x in blocks):
            return jnp.concatenate([jnp.asarray(x).astype(dtype).reshape(-1) for x in blocks])
        return jnp.asarray(np.concatenate([np.asarray(x).astype(dtype).reshape(-1) for x in blocks]))

    def unravel(self, flat: Any) -> Any:
        """The tree of a flat vector `(n,)`, every leaf in its recorded shape and dtype.

        One split, whose gradient is one `concatenate`. Raises `ValueError` for another length or rank,
        `TypeError` for integers or booleans, and for complex numbers where real ones are expected. A vector of
        another precision is cast to the recorded dtypes.
        """
        return self.rebuild(self.split(flat))

    def ravel(self, tree: Any, dtype=None) -> jax.Array:
        """The flat vector `(n,)` of a tree of this layout; the inverse of `unravel`. Goes by path: dicts in any order.

        Raises `ValueError` naming the first path that is missing, unknown or of another shape, and for tied arrays
        with different numbers; `TypeError` at leaves that are no floating-point arrays.
        """
        got = Layout.of(tree)
        if got is self and layout_of(tree) is not None:
            return jnp.asarray(tree.data, dtype)
        if got is not self:
            self.require_same(got, order=False, dtypes=False)
        leaves = self.collect(tree)
        self._require_agreement(leaves)
        return self.join(self.own(leaves), dtype)

    def rebuild(self, blocks: Iterable[Any]) -> Any:
        """The tree of this layout with the given arrays, one for each block, in order."""
        blocks = list(blocks)
        return self._rebuild(iter([blocks[i] for i in self.block_of.values()] if self.ties else blocks))

    def _rebuild(self, leaves: Iterator[Any]) -> Any:
        if self.is_array:
            return next(leaves)
        return close_container(self.container, {key: child._rebuild(leaves) for key, child in self.children.items()})

    def collect(self, tree: Any) -> list[Any]:
        """The leaves of a tree of this layout's paths, in the order of `leaves`."""
        if self.is_array:
            return [tree]
        if layout_of(tree) is not None:
            tree = tree.tree()
        items = dict(open_container(tree)[1]) if self.children else {}
        return [leaf for key, child in self.children.items() for leaf in child.collect(items[key])]

    def own(self, leaves: list[Any]) -> list[Any]:
        """The blocks among the leaves: of tied arrays the first one."""
        return [x for x, leaf in zip(leaves, self.leaves, strict=True) if leaf.owner is None]

    def _require_agreement(self, leaves: list[Any]) -> None:
        value = {leaf.path: x for leaf, x in zip(self.leaves, leaves, strict=True)}
        for owner, path in self.ties:
            a, b = value[owner], value[path]
            if a is b or isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
                continue
            if not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True):
                raise ValueError(
                    f"`{path_string(owner)}` and `{path_string(path)}` are tied, but hold different numbers"
                )

    # --- comparing ------------------------------------------------------------------------------------------

    def difference(self, other: "Layout", *, order: bool = True, dtypes: bool = True) -> str | None:
        """The first difference between this layout (the expected one) and another, as a sentence; `None` without one.

        Without `order` only the trees are compared: neither the order of the components nor ties matter.
        """
        return difference(self, other, order, dtypes) if order else difference(self.untied, other.untied, order, dtypes)

    def require_same(self, other: "Layout", *, order: bool = True, dtypes: bool = False) -> None:
        """Raise `ValueError` with the first difference, if there is one."""
        found = self.difference(other, order=order, dtypes=dtypes)
        if found:
            raise ValueError(f"the layouts differ: {found}")


def layout_of(x: Any) -> Layout | None:
    """The layout of a ComponentVector; `None` for everything else."""
    layout = None if isinstance(x, jax.Array) else getattr(x, "layout", None)
    return layout if isinstance(layout, Layout) else None


def _remake(container, children, shape, dtype) -> Layout:
    return Layout(container, dict(children), shape, dtype)


def _heads(path: Path) -> list[str]:
    return [path_string(path[: i + 1]) for i in range(len(path))]


def _parameter_dtype(x: Any, path: Path, in_module: bool = False) -> np.dtype:
    dtype = _stored_dtype(x.dtype, jax.config.jax_enable_x64)
    if dtype is not None:
        return dtype
    problem = f"`{path_string(path)}` has dtype {x.dtype}"
    if jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{problem}, which JAX does not have; convert it to float64")
    way_out = "integers, booleans and random keys belong in the state (`init_state`)"
    if in_module:
        way_out = "`eqx.partition(module, eqx.is_inexact_array)` separates them"
    raise TypeError(f"{problem}: parameters are floating-point numbers; {way_out}")


@functools.lru_cache
def _stored_dtype(dtype: Any, x64: bool) -> np.dtype | None:
    """The dtype in which JAX stores floating-point numbers of the given one; `None` for every other dtype."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return None
    if dtype.itemsize > (16 if jnp.issubdtype(dtype, jnp.complexfloating) else 8):
        return None
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype)).newbyteorder("=")


def _describe(x: Any) -> str:
    if isinstance(x, bool | int | str):
        return f"the {type(x).__name__} {x!r}"
    return f"of type {type(x).__name__}"
