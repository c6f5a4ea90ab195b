"""Layout: the static description of a flat vector, path by path; the vector of a tree, and the tree of a vector."""

import bisect
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

from .._tree import exact_key, is_traced
from .difference import difference
from .nodes import (
    ARRAY,
    DICT,
    LIST,
    TUPLE,
    Container,
    Path,
    Static,
    Tied,
    close_container,
    container_key,
    is_module,
    nest,
    open_container,
    path_string,
    quoted,
)
from .split import split

_ARRAYS = (
    np.ndarray,
    np.generic,
    jax.Array,
    jax.ShapeDtypeStruct,
    type(jax.typeof(0.0)),
)  # the last: what traced ones are known by


class Leaf(NamedTuple):
    """One array of a layout: where it lies in the flat vector, and what it is."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Path | None = None  # of a tied array: the path of the one whose elements it shares

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Layout:
    """A static, hashable description: path -> (offset, shape, dtype).

    Layouts are interned: two built from equal structures, in the same order, are the same object, where `1`, `1.0` and
    `True` are not equal. They therefore compare and hash by identity, at no cost, also as static arguments of
    `jax.jit`, and also after pickling.

    The order of the components is the declared order (the insertion order of dicts). JAX sorts dicts whenever
    they pass through it, so `ravel` goes by path and takes dicts in any order.

    A path is a tuple of keys, `("layer_0", "weight")`, and `"layer_0.weight"` is short for it. Where keys hold dots
    themselves, a text is taken for the longest key that leads to a component.

    >>> import jax.numpy as jnp
    >>> layout = Layout.of({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    >>> layout.size, layout.slice("b")
    (9, slice(6, 9, None))
    >>> layout.unravel(jnp.arange(9.0))["b"]
    Array([6., 7., 8.], dtype=float32)
    """

    container: Container
    children: Mapping[Hashable, "Layout"]  # in declared order
    shape: tuple[int, ...]
    dtype: np.dtype  # of an array; `None` in containers
    size: int

    _interned: ClassVar["weakref.WeakValueDictionary[Hashable, Layout]"] = weakref.WeakValueDictionary()
    _lock = threading.RLock()

    def __new__(
        cls,
        container: Container,
        children: Mapping[Hashable, "Layout"] = {},
        shape: tuple[int, ...] = (),
        dtype: np.dtype | None = None,
    ) -> "Layout":
        keys = [key if type(key) is str else exact_key(key) for key in children]
        signature = (container_key(container), *keys, *children.values(), shape, dtype)
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

    def __deepcopy__(self, memo: Any) -> "Layout":
        return self

    # --- construction ---------------------------------------------------------------------------------------

    @classmethod
    def of(cls, tree: Any, ties: Iterable[Iterable[str | Path]] = ()) -> "Layout":
        """The layout of a pytree of floating-point arrays (or of `jax.ShapeDtypeStruct`s).

        Dicts, lists, tuples, NamedTuples, dataclasses, `None` and every registered pytree are containers. In an
        Equinox module everything that is no array is kept as it is, functions and integers included. `ties` are groups
        of paths that share their elements: see `tie`. Raises `TypeError`, with the path, at an integer, boolean, key,
        string or callable leaf elsewhere (these belong in the state), and at real beside complex leaves.

        >>> Layout.of({"a": 1.0, "b": [jnp.ones(2), None]})
        Layout(3 elements: a (), b.0 (2,))
        """
        found: list[tuple[Path, Path]] = []
        layout = cls._of(tree, (), found)
        layout.require_one_kind()
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
        if one_level is None and in_module and callable(getattr(node, "__hash__", None)):
            return cls(Static(node))
        if one_level is None:
            raise TypeError(
                f"{quoted(path)} is {_describe(node)}, not a floating-point array: parameters are arrays of "
                f"floating-point elements{_as_float(node)}; keep everything else in the state or in a field of the "
                "layer"
            )
        container, items = one_level
        inside = in_module or is_module(container)
        return cls(container, {key: cls._of(child, (*path, key), ties, inside) for key, child in items})

    def tie(self, *groups: Iterable[str | Path]) -> "Layout":
        """The same layout with arrays that share their elements: `layout.tie(("encoder.weight", "decoder.weight"))`.

        Each group is a tuple of paths of arrays, or of sub-trees with equal layouts. The elements stand once in the
        flat vector, at the first of them in declared order. Raises `ValueError` for different shapes or dtypes.

        >>> Layout.of({"a": jnp.ones(2), "b": jnp.ones(2)}).tie(("a", "b")).size
        2
        """
        if not groups:
            return self
        leaves = {leaf.path: leaf for leaf in self.leaves}
        position = {path: i for i, path in enumerate(leaves)}
        owner = {path: leaf.owner or path for path, leaf in leaves.items()}
        for group in groups:
            found = list(map(self.find, group))
            if len({node.untied for _, node, _ in found}) > 1:
                texts = " and ".join(f"`{self.name(path)}` ({node.summary()})" for _, node, path in found)
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

    def astype(self, dtype: Any) -> "Layout":
        """The same layout with every leaf recorded as `dtype`, a floating-point type; otherwise `TypeError`."""
        if self.is_array:
            return Layout(self.container, {}, self.shape, _parameter_dtype(jax.ShapeDtypeStruct((), dtype), ("dtype",)))
        if not self.children:
            return self
        return Layout(self.container, {key: child.astype(dtype) for key, child in self.children.items()})

    def in_force(self) -> "Layout":
        """The same layout in the precision in force: double precision as single where JAX has no 64-bit types."""
        return self if _has_64_bits() else self._in_32_bits

    @functools.cached_property
    def _in_32_bits(self) -> "Layout":
        if self.is_array:
            return Layout(self.container, {}, self.shape, stored_dtype(self.dtype, False))
        if all(child._in_32_bits is child for child in self.children.values()):
            return self
        return Layout(self.container, {key: child._in_32_bits for key, child in self.children.items()})

    def require_one_kind(self) -> None:
        """Raise `TypeError` where some leaves are real and others complex."""
        kinds = {leaf.dtype.kind == "c": leaf for leaf in self.leaves}
        if len(kinds) == 2:
            raise TypeError(
                f"`{self.name(kinds[False].path)}` is real and `{self.name(kinds[True].path)}` is complex: one flat "
                "vector cannot hold both; store the complex one as its real and imaginary parts"
            )

    # --- looking up -----------------------------------------------------------------------------------------

    @property
    def is_array(self) -> bool:
        """Whether this is one array, and no container."""
        return self.container == ARRAY or isinstance(self.container, Tied)

    @property
    def is_sequence(self) -> bool:
        """Whether the components are those of a list or tuple."""
        return self.container in (LIST, TUPLE)

    @property
    def is_stack(self) -> bool:
        """Whether this is a sequence of equal components, which can be read as one with a leading axis."""
        return self.is_sequence and len(set(self.children.values())) == 1 and not self.ties

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
    def block_of(self) -> dict[Path, int]:
        """For every path, which of the `blocks` holds its elements."""
        position = {leaf.path: i for i, leaf in enumerate(self.blocks)}
        return {leaf.path: position[leaf.owner or leaf.path] for leaf in self.leaves}

    @functools.cached_property
    def ties(self) -> tuple[tuple[Path, Path], ...]:
        """Pairs of paths: the array that holds the elements, and one that shares them."""
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

    @property
    def flat_dtype(self) -> np.dtype:
        """The dtype of the flat vector: that of its leaves (the default float type where there are none).

        Raises `ValueError` where the leaves have several floating-point types.
        """
        if not self.leaves:  # not cached: the switch for 64-bit types decides it
            return np.dtype(jax.dtypes.canonicalize_dtype(float))
        return self._leaf_dtype

    @functools.cached_property
    def _leaf_dtype(self) -> np.dtype:
        first: dict[np.dtype, Leaf] = {}
        for leaf in self.leaves:
            first.setdefault(leaf.dtype, leaf)
        if len(first) > 1:
            a, b = itertools.islice(first.values(), 2)
            raise ValueError(
                f"`{self.name(a.path)}` is {a.dtype} and `{self.name(b.path)}` is {b.dtype}: say which type the "
                "flat vector shall have, `dtype=...`; the leaves come back in their own types"
            )
        return next(iter(first))

    def find(self, path: str | Path | Hashable) -> tuple[int, "Layout", Path]:
        """Offset, layout and full path of the component at `("a", "b")`, or at `"a.b"`.

        Raises `KeyError`, naming what there is, where nothing is found.

        >>> layout = Layout.of({"a": {"b": 1.0}, "a.b": 2.0})
        >>> layout.find(("a", "b"))[2], layout.find("a.b")[2]
        (('a', 'b'), ('a.b',))
        """
        found = self.resolve(path)
        offset, node = 0, self
        for key in found:
            offset, node = offset + node.offsets[key], node.children[key]
        if isinstance(node.container, Tied):
            offset, node, _ = self.find(node.container.owner)
        return offset, node, found

    def resolve(self, path: str | Path | Hashable, *, stacks: bool = False) -> Path:
        """The full path that a path or text stands for; with `stacks`, also one that leads on from a stack's names."""
        keys = path if isinstance(path, tuple) else (path,)
        if not all(isinstance(key, Hashable) for key in keys):
            raise TypeError(f"a path is a text or a tuple of keys, got {path!r}")
        if len(keys) == 1 and keys[0] in self.children:
            return keys
        found = next(self._routes(keys, stacks), None)
        if found is None:
            raise KeyError(self._what_there_is(keys, stacks))
        return found

    def _routes(self, keys: Path, stacks: bool) -> Iterator[Path]:
        """All paths that the keys may stand for: each an exact key, or a text of several, the longest heads first."""
        if not keys:
            yield ()
            return
        for head, rest in self._heads(keys[0]):
            for tail in self.children[head]._routes((*rest, *keys[1:]), stacks):
                yield (head, *tail)
        if stacks and self.is_stack:
            yield from self.children[0]._routes(keys, stacks)

    def _heads(self, key: Hashable) -> Iterator[tuple[Hashable, tuple[str, ...]]]:
        """The children whose names stand at the head of a key, with what is left of the key."""
        if not isinstance(key, str):
            if key in self.children:
                yield key, ()
            return
        parts = key.split(".")
        for i in range(len(parts), 0, -1):
            head = ".".join(parts[:i])
            if head in self._texts:
                yield self._texts[head], (".".join(parts[i:]),) if i < len(parts) else ()

    @functools.cached_property
    def _texts(self) -> dict[str, Hashable]:
        """The children's keys by what they read as: `"0"` stands for 0, unless it is a key itself."""
        return {**{str(key): key for key in self.children}, **{key: key for key in self.children if type(key) is str}}

    def _what_there_is(self, keys: Path, stacks: bool, found: Path = ()) -> str:
        """Why keys lead nowhere: the first one that nothing stands for."""
        for head, rest in self._heads(keys[0]):
            return self.children[head]._what_there_is((*rest, *keys[1:]), stacks, (*found, head))
        if stacks and self.is_stack and not isinstance(keys[0], int):
            return self.children[0]._what_there_is(keys, stacks, found)
        where = f"`{path_string(found)}` has" if found else "there is"
        key = keys[0].split(".")[0] if isinstance(keys[0], str) else keys[0]
        nothing = "nothing, an array has no components" if self.is_array else "nothing inside"
        patterns = "; patterns are for `layout.match` and `layout.mask`" if "*" in str(keys[0]) else ""
        return f"{where} no component {key!r}; what there is: {', '.join(map(str, self.children)) or nothing}{patterns}"

    def select(self, *paths: str | Path | Hashable) -> "Layout":
        """The layout of some components, in the order asked for, each at its own path; ties among them are kept.

        A sequence of which only parts are chosen comes as a dict. Raises `ValueError` for a component asked for twice,
        `KeyError` for an unknown one.

        >>> Layout.of({"a": 1.0, "b": {"c": 2.0, "d": 3.0}}).select("b.d", "a")
        Layout(2 elements: b.d (), a ())
        """
        full = [self.resolve(path) for path in paths]
        chosen = nest((path, functools.reduce(lambda node, key: node.children[key], path, self)) for path in full)
        inside = {leaf.path for path in full for leaf in self.under(path)}
        return _nested(chosen).tie(*(pair for pair in self.ties if inside.issuperset(pair)))

    def name(self, path: Path) -> str:
        """A path as people read it, `"a.b"`; as a tuple where that text leads elsewhere."""
        text = path_string(path)
        return text if not path or next(self._routes((text,), False), None) == path else str(path)

    def under(self, path: Path) -> tuple[Leaf, ...]:
        """The leaves at a full path and below it."""
        return tuple(leaf for leaf in self.leaves if leaf.path[: len(path)] == path)

    def slice(self, path: str | Path | Hashable) -> slice:
        """The place of a component in the flat vector. Raises `ValueError` for a sub-tree that holds a tied array."""
        offset, node, path = self.find(path)
        if node.ties:
            raise ValueError(f"`{self.name(path)}` holds a tied array and is not in one piece; `index` has its indices")
        return slice(offset, offset + node.size)

    def index(self, path: str | Path | Hashable) -> np.ndarray:
        """The indices of a component in the flat vector, in the component's shape (flat for a sub-tree).

        >>> Layout.of({"a": 1.0, "b": jnp.ones((2, 2))}).index("b")
        array([[1, 2],
               [3, 4]])
        """
        offset, node, path = self.find(path)
        if node.is_array:
            return np.arange(offset, offset + node.size).reshape(node.shape)
        if not node.ties:
            return np.arange(offset, offset + node.size)
        return np.concatenate([np.arange(leaf.offset, leaf.offset + leaf.size) for leaf in self.under(path)])

    def match(self, pattern: str | Path | Hashable) -> tuple[Leaf, ...]:
        """The leaves of a component, or of all whose path, or a head of it, matches: `"*.bias"`, `("layer_*", "bias")`.

        What `find` finds is that component alone. In other texts `*` stands for anything, dots included, and `?` for
        one character; a tuple of texts has one for each key. Raises `KeyError` for a pattern that matches nothing.

        >>> [leaf.path for leaf in Layout.of({"a": {"bias": 1.0}, "b": {"bias": 2.0, "weight": 3.0}}).match("*.bias")]
        [('a', 'bias'), ('b', 'bias')]
        """
        try:
            out = self.under(self.resolve(pattern))
        except KeyError:
            out = tuple(leaf for leaf in self.leaves if _matches(leaf.path, pattern))
        if not out:
            names = ", ".join(self.name(leaf.path) for leaf in self.leaves[:8])
            raise KeyError(f"no component matches {pattern!r}; the first ones are: {names or 'none'}")
        return out

    def mask(self, *patterns: str | Path | Hashable) -> np.ndarray:
        """A boolean vector `(n,)`, true at every leaf that matches one of the patterns: see `match`.

        >>> Layout.of({"weight": jnp.ones(2), "bias": 0.0}).mask("b*")
        array([False, False,  True])
        """
        out = np.zeros(self.size, bool)
        for leaf in itertools.chain.from_iterable(map(self.match, patterns)):
            out[leaf.offset : leaf.offset + leaf.size] = True
        return out

    def labels(self) -> list[str]:
        """A name for every element: `"layer_0.weight[0,3]"`.

        >>> Layout.of({"a": 1.0, "b": jnp.ones((1, 2))}).labels()
        ['a', 'b[0,0]', 'b[0,1]']
        """
        return [self.label(i) for i in range(self.size)]

    def label(self, i: int) -> str:
        """The name of one element."""
        if not 0 <= i < self.size:
            raise IndexError(f"there is no element {i} of {self.size}")
        block = bisect.bisect(self._starts, i) - 1
        leaf, name = self.blocks[block], self._block_names[block]
        if not leaf.shape:
            return name
        return f"{name}[{','.join(map(str, np.unravel_index(i - leaf.offset, leaf.shape)))}]"

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [leaf.offset for leaf in self.blocks]

    @functools.cached_property
    def _block_names(self) -> list[str]:
        return [self.name(leaf.path) for leaf in self.blocks]

    def __repr__(self) -> str:
        return f"Layout({self.summary()})"

    def summary(self, most: int = 6) -> str:
        """`9 elements: w (2, 3), b (3,)`, with at most `most` components."""
        names = [f"{self.name(leaf.path) or 'value'} {leaf.shape}" for leaf in self.leaves[:most]]
        more = len(self.leaves) - most
        return f"{self.size} elements: " + ", ".join(names) + (f", and {more} more" if more > 0 else "")

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
        """`flat` itself, if its elements are of this kind, real or complex floating point; otherwise `TypeError`."""
        kind = np.inexact if not self.leaves else np.complexfloating if self._is_complex else np.floating
        if not jnp.issubdtype(flat.dtype, kind):
            raise TypeError(
                f"expected a vector of {kind.__name__} elements, got {flat.dtype}; convert it explicitly if that is "
                f"meant. The layout has {self.summary()}"
            )
        return flat

    @functools.cached_property
    def _is_complex(self) -> bool:
        return any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in self.leaves)

    @functools.cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(leaf.size for leaf in self.blocks)

    def split(self, flat: Any) -> list[jax.Array]:
        """The blocks of a flat vector `(n,)`, each in its recorded shape and dtype."""
        flat = self.check(flat)
        parts = split(flat, self._sizes) if self.blocks else []
        dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in self.blocks]  # in the precision in force
        return [p.reshape(leaf.shape).astype(t) for p, leaf, t in zip(parts, self.blocks, dtypes, strict=True)]

    def join(self, blocks: list[Any], dtype=None) -> jax.Array:
        """The flat vector `(n,)` of the blocks; the inverse of `split`."""
        dtype = jax.dtypes.canonicalize_dtype(self.flat_dtype if dtype is None else dtype)
        for leaf, x in zip(self.blocks, blocks, strict=True):
            if not self._is_complex and jnp.iscomplexobj(x):
                raise TypeError(f"{quoted(leaf.path)} is complex, where the layout is real")
        if not blocks:
            return jnp.zeros(0, dtype)
        if all(map(_is_small_on_host, blocks)):  # without a program to compile for each shape
            return jnp.asarray(np.concatenate([np.asarray(x).astype(dtype).reshape(-1) for x in blocks]), dtype)
        return jnp.concatenate([jnp.asarray(x).astype(dtype).reshape(-1) for x in blocks])

    def unravel(self, flat: Any) -> Any:
        """The tree of a flat vector `(n,)`, every leaf in its recorded shape and dtype.

        One split, whose gradient is one `concatenate`. Raises `ValueError` for another length or rank,
        `TypeError` for integers or booleans, and for complex elements where real ones are expected. A vector of
        another precision is cast to the recorded dtypes.

        >>> Layout.of({"a": 1.0, "b": [2.0, 3.0]}).unravel(jnp.array([4.0, 5.0, 6.0]))["b"]
        [Array(5., dtype=float32), Array(6., dtype=float32)]
        """
        return self.rebuild(self.split(flat))

    def ravel(self, tree: Any, dtype=None) -> jax.Array:
        """The flat vector `(n,)` of a tree of this layout; the inverse of `unravel`. Goes by path: dicts in any order.

        Raises `ValueError` naming the first path that is missing, unknown or of another shape, and for tied arrays
        with different elements; `TypeError` at leaves that are no floating-point arrays.

        >>> Layout.of({"b": 1.0, "a": 2.0}).ravel({"a": 3.0, "b": 4.0})
        Array([4., 3.], dtype=float32)
        """
        got = Layout.of(tree)
        if got is self and layout_of(tree) is not None:
            return jnp.asarray(tree.data, dtype and jax.dtypes.canonicalize_dtype(dtype))
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
        _, opened = open_container(tree) or (None, ())
        items = dict(opened)
        return [leaf for key, child in self.children.items() for leaf in child.collect(items[key])]

    def own(self, leaves: list[Any]) -> list[Any]:
        """The blocks among the leaves: of tied arrays the first one."""
        return [x for x, leaf in zip(leaves, self.leaves, strict=True) if leaf.owner is None]

    def _require_agreement(self, leaves: list[Any]) -> None:
        value = {leaf.path: x for leaf, x in zip(self.leaves, leaves, strict=True)}
        for owner, path in self.ties:
            if not agree(value[owner], value[path]):
                raise ValueError(f"`{self.name(owner)}` and `{self.name(path)}` are tied, but hold different values")

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


def agree(a: Any, b: Any) -> bool:
    """Whether two arrays are equal, NaN included, as far as can be seen: traced ones are taken to be."""
    if a is b or is_traced(a) or is_traced(b):
        return True
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def layout_of(x: Any) -> Layout | None:
    """The layout of a ComponentVector; `None` for everything else."""
    layout = None if isinstance(x, jax.Array) else getattr(x, "layout", None)
    return layout if isinstance(layout, Layout) else None


def as_layout(x: Any) -> Layout:
    """The layout of a ComponentVector, or a layout itself; `TypeError` for everything else."""
    layout = x if isinstance(x, Layout) else layout_of(x)
    if layout is None:
        raise TypeError(f"expected a Layout or a ComponentVector, got {type(x).__name__}")
    return layout


def _nested(node: Any) -> Layout:
    """The layout of nested dicts of layouts."""
    if isinstance(node, Layout):
        return node.untied
    return Layout(DICT, {key: _nested(child) for key, child in node.items()})


def _remake(container, children, shape, dtype) -> Layout:
    return Layout(container, dict(children), shape, dtype)


def _matches(path: Path, pattern: Any) -> bool:
    """Whether a pattern matches a path or a head of it."""
    if not isinstance(pattern, tuple):
        heads = [path_string(path[: i + 1]) for i in range(len(path))] or [""]
        return any(fnmatch.fnmatchcase(head, str(pattern)) for head in heads)
    head = path[: len(pattern)]
    return len(head) == len(pattern) and all(
        fnmatch.fnmatchcase(str(key), str(text)) for key, text in zip(head, pattern, strict=True)
    )


def _parameter_dtype(x: Any, path: Path, in_module: bool = False) -> np.dtype:
    dtype = stored_dtype(x.dtype, _has_64_bits())
    if dtype is not None:
        return dtype
    problem = f"{quoted(path)} has dtype {x.dtype}"
    if jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{problem}, which JAX does not have; convert it to float64")
    way_out = "integers, booleans and random keys belong in the state (`init_state`)"
    if jnp.issubdtype(x.dtype, jnp.integer):
        way_out = f"`astype(float)` makes one; {way_out}"
    if in_module:
        way_out = "`eqx.partition(module, eqx.is_inexact_array)` separates them"
    raise TypeError(f"{problem}: parameters are floating-point arrays; {way_out}")


def _is_small_on_host(x: Any) -> bool:
    """Whether NumPy reads it at once: what is no array of JAX, and small ones on the CPU that nobody has placed."""
    if not isinstance(x, jax.Array):
        return True
    if is_traced(x) or x.size > 2**16 or x.committed:
        return False
    return all(device.platform == "cpu" for device in x.devices())


def _has_64_bits() -> bool:
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # made at import


@functools.lru_cache
def stored_dtype(dtype: Any, x64: bool) -> np.dtype | None:
    """The dtype in which JAX stores floating-point elements of the given one; `None` for every other dtype."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return None
    if dtype.itemsize > (16 if jnp.issubdtype(dtype, jnp.complexfloating) else 8):
        return None
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype)).newbyteorder("=")


def _as_float(x: Any) -> str:
    return f", such as {float(x)}" if type(x) is int else ""


def _describe(x: Any) -> str:
    if isinstance(x, bool | int | str):
        return f"the {type(x).__name__} {x!r}"
    return f"of type {type(x).__name__}"
