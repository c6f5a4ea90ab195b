"""ComponentVector: one flat vector and the layout that names its parts."""

import functools
import inspect
from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._compat import made_in_current_trace
from .._libraries import library
from .._tree import describe, is_traced
from .arithmetic import NamedArray, fill, make, register
from .layout import Layout, as_layout
from .nodes import DICT, NONE, Path, Static, is_path
from .printing import attributes, completions, show, table, table_html
from .split import split
from .tables import from_pandas, to_pandas
from .updates import At, numbers, updated, updates


@register
class ComponentVector(NamedArray):
    """A flat vector whose parts have names: `data`, an array `(n,)`, and `layout`, which is static.

    `ComponentVector(a=1.0, b=[1.0, 2.0], c={"d": jnp.ones((2, 3))})` builds one from its components, in the order
    given, `ComponentVector(tree)` from a dict, list, tuple, NamedTuple, dataclass or registered pytree, and
    `ComponentVector(data, layout)` from the two parts. In the first two forms Python's numbers, and lists of them, are
    floats, integer literals included. `ComponentVector.from_tree(tree)` takes arrays only and has more options.

    For JAX it is a pytree with one leaf: `jax.grad`, `vmap`, `scan`, optax and optimistix give back
    ComponentVectors. Components are read with `cv.c.d`, `cv["c"]["d"]` or `cv["c.d"]`; sub-trees come back as
    ComponentVectors. In a sequence of equal components, `cv.b[1].a` is one and `cv.b.a` stacks them all. Vectors are
    immutable: `replace`, `at`, `merge` and `select` return new ones. The component axis is the last one, so that data
    of shape `(batch, n)` is a batch of vectors.

    Arithmetic with scalars, with arrays `(n,)` on the right, with NumPy arrays on either side and with vectors of the
    same layout keeps the names; another layout raises `ValueError`. `jnp` functions and comparisons give plain
    arrays, as does a JAX array on the left: `ComponentVector(x, layout)` puts the names back. `jax.lax` functions take
    `cv.data`.

    >>> u = ComponentVector(S=990, I=10, R=0)
    >>> u.S, u["I"]
    (Array(990., dtype=float32), Array(10., dtype=float32))
    >>> (u / 1000).replace(R=1)
    ComponentVector(S=0.99, I=0.01, R=1)
    """

    __slots__ = ("_parts",)

    def __init__(self, *args: Any, **components: Any):
        if len(args) == 2 and not components:
            data, layout = args
            layout = as_layout(layout).in_force()
            data = layout.check_kind(jnp.asarray(data))
            if data.dtype != jax.dtypes.canonicalize_dtype(data.dtype):  # the precision in force is another one
                data = data.astype(jax.dtypes.canonicalize_dtype(data.dtype))
            if data.ndim == 0 or data.shape[-1] != layout.size:
                raise ValueError(
                    f"expected data of shape (..., {layout.size}), got {data.shape}; the layout has {layout.summary()}"
                )
        elif len(args) + bool(components) < 2:
            for name in components:
                refuse_reserved(name)
            tree = numbers(args[0] if args else components)
            layout = Layout.of(tree)
            data = layout.ravel(tree)
        else:
            raise TypeError("ComponentVector takes components by keyword, one tree of them, or (data, layout)")
        fill(self, data, layout)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a ComponentVector is immutable: use cv.replace({name}=...) or cv.at[{name!r}].set(...)")

    if not TYPE_CHECKING:  # which refuses it by itself where there is none

        def __setitem__(self, name: Any, value: Any) -> None:
            raise TypeError("a ComponentVector is immutable: cv.at[name].set(...), cv.replace(name=...) return another")

    @classmethod
    def from_tree(
        cls,
        tree: Any,
        dtype: Any = None,
        like: "Layout | ComponentVector | None" = None,
        ties: Iterable[Iterable[str | Path]] = (),
    ) -> "ComponentVector":
        """The flat vector of a pytree of floating-point arrays.

        `dtype` is the type of the flat vector; where the leaves have several types it must be given, and they come
        back in their own. `like` (a Layout or a ComponentVector) fixes order, shapes and ties: the tree is taken by
        path. `ties` are groups of paths that share their elements: they stand once in the vector, with the values of
        the first path in declared order, their gradients sum, and all stay equal.

        Raises `TypeError` with the path for leaves that are no parameters, `ValueError` for other paths than `like`'s.

        >>> tree = {"encoder": {"weight": jnp.ones(2)}, "decoder": {"weight": jnp.ones(2)}}
        >>> cv = ComponentVector.from_tree(tree, ties=[("encoder.weight", "decoder.weight")])
        >>> cv.size, cv.at["decoder.weight"].set(3.0).encoder.weight
        (2, Array([3., 3.], dtype=float32))
        """
        if like is not None:
            layout = as_layout(like).in_force().tie(*ties)
            return _make(layout.ravel(tree, dtype), layout)
        layout = Layout.of(tree, ties)
        return _make(layout.join(layout.own(layout.collect(tree)), dtype), layout)

    # --- as an array ----------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """What the vector holds, by path."""
        return self._names

    @property
    def _named_shape(self) -> tuple[int, ...]:
        return (self.layout.size,)

    def _require_same_names(self, other: "ComponentVector") -> None:
        if other.layout is not self.layout:
            self.layout.require_same(other.layout)

    def _noun(self) -> str:
        return f"a vector of {self.layout.summary()}"

    def __matmul__(self, other: Any) -> jax.Array:
        if isinstance(other, ComponentVector):
            self._require_same_names(other)
        elif isinstance(other, NamedArray):
            return NotImplemented
        return jnp.matmul(self.data, jnp.asarray(other))

    def __rmatmul__(self, other: Any) -> jax.Array:
        return jnp.matmul(jnp.asarray(other), self.data)

    def __len__(self) -> int:
        return len(self.layout.children) if self.layout.is_sequence else self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def astype(self, dtype: Any) -> "ComponentVector":
        """The same vector, with its data and every leaf of its layout in another floating-point type.

        >>> ComponentVector(a=1).astype("bfloat16").a.dtype
        dtype(bfloat16)
        """
        return _make(self.data.astype(dtype), self.layout.astype(dtype))

    # --- reading --------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and (name.startswith("__") or name in ("_parts", "_names")):  # not set, or no component
            raise AttributeError(name)
        try:
            return self._get((name,))
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __getitem__(self, key: Any) -> Any:
        """A component by name or path, several by a list, an item of a sequence by integer; else NumPy's indexing."""
        if is_path(key):
            return self._get(key)
        if isinstance(key, list) and key and all(map(is_path, key)):
            return self.select(*key)
        if not self.layout.is_sequence:
            return self.data[key]
        if not isinstance(key, int | np.integer):
            raise TypeError(f"a sequence of components takes an integer, got {key!r}; `cv.data[...]` indexes elements")
        return self._child(range(len(self.layout.children))[key])

    def _get(self, path: str | Path) -> Any:
        out: Any = self
        for key in self.layout.resolve(path, stacks=True):
            out = out._child(key)
        return out

    def _child(self, key: Hashable) -> Any:
        """One component. On a traced vector the whole level is split once: see `_split_level`."""
        layout = self.layout.children.get(key)
        if layout is None:  # a name in a stack
            return (self._split_level()[_STACK] if is_traced(self.data) else self._stacked())._child(key)
        if is_traced(self.data):
            return self._split_level()[key]
        if layout.ties:
            return self._gathered(key)
        start = self.layout.offsets[key]
        return view(lax.slice_in_dim(jnp.asarray(self.data), start, start + layout.size, axis=-1), layout)

    def _split_level(self) -> dict[Hashable, Any]:
        """All components of this level by one split, kept while the trace that made the data goes on.

        A slice for each access would cost a whole vector each in the gradient; the gradient of one split is one
        `concatenate`.
        """
        kept = getattr(self, "_parts", None)
        if kept is not None:
            return kept
        children = self.layout.children
        if self.data.shape[-1:] != (self.layout.size,):
            raise ValueError(
                f"the vector holds {self.data.shape[-1:]} of the {self.layout.size} elements that its names stand for: "
                "it is a shard, or what a transform put in its place; gather it before its components are read, in "
                "shard_map by jax.lax.all_gather(vector.data, axis, tiled=True)"
            )
        parts = split(self.data, tuple(child.size for child in children.values()))
        out = {
            key: self._gathered(key) if child.ties else view(part, child)
            for part, (key, child) in zip(parts, children.items(), strict=True)
        }
        if self.layout.is_stack:
            out[_STACK] = self._stacked()
        if made_in_current_trace(self.data):
            object.__setattr__(self, "_parts", out)
        return out

    def _gathered(self, key: Hashable) -> Any:
        """A component that is, or holds, a tied array: its elements lie apart. It comes back with its own copy."""
        layout, data = self.layout.children[key].untied, jnp.asarray(self.data)[..., self.layout.index((key,))]
        return view(data, layout)

    def _stacked(self) -> "ComponentVector":
        children = list(self.layout.children.values())
        return _make(jnp.reshape(self.data, (*self.shape[:-1], len(children), children[0].size)), children[0])

    def tree(self) -> Any:
        """The nested tree, in the containers and dtypes it was built from: one `lax.split`.

        >>> ComponentVector(a=1, b={"c": [2, 3]}).tree()
        {'a': Array(1., dtype=float32), 'b': {'c': Array([2., 3.], dtype=float32)}}
        """
        return self.layout.unravel(self.data)

    def unpack(self, *names: str | Path) -> tuple[Any, ...]:
        """Several components at once: `a, b = cv.unpack("a", "b")`.

        >>> ComponentVector(a=1, b={"c": 2}).unpack("b.c", "a")
        (Array(2., dtype=float32), Array(1., dtype=float32))
        """
        return tuple(self[name] for name in names)

    def keys(self):
        """The names at the root."""
        return self.layout.children.keys()

    def values(self) -> list[Any]:
        """The components at the root."""
        return [self._child(key) for key in self.layout.children]

    def items(self) -> list[tuple[Hashable, Any]]:
        """Names and components at the root.

        >>> ComponentVector(a=1, b=2).items()
        [('a', Array(1., dtype=float32)), ('b', Array(2., dtype=float32))]
        """
        return [(key, self._child(key)) for key in self.layout.children]

    def __contains__(self, path: Any) -> bool:
        try:
            self.layout.find(path)
        except KeyError:
            return False
        return True

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *attributes(self.layout)]

    def _ipython_key_completions_(self) -> list[str]:
        return completions(self.layout)

    def labels(self) -> list[str]:
        """A name for every element: `"layer_0.weight[0,3]"`.

        >>> ComponentVector(a=1, b=[2, 3]).labels()
        ['a', 'b[0]', 'b[1]']
        """
        return self.layout.labels()

    def select(self, *paths: str | Path) -> "ComponentVector":
        """A vector of some components, in the order asked for, each at its own path; also `cv[["a", "b"]]`.

        Ties among them are kept. Raises `ValueError` for a component asked for twice, `KeyError` for an unknown one.

        >>> cv = ComponentVector(a=1, b={"c": 2, "d": 3})
        >>> cv.select("b.d", "a")
        ComponentVector(b=(d=3), a=1)
        """
        layout, batch = self.layout.select(*paths), self.shape[:-1]
        blocks = [self._get(leaf.path).astype(self.dtype).reshape(*batch, leaf.size) for leaf in layout.blocks]
        return _make(jnp.concatenate([*blocks, jnp.zeros((*batch, 0), self.dtype)], axis=-1), layout)

    # --- updating -------------------------------------------------------------------------------------------

    def replace(self, **components: Any) -> "ComponentVector":
        """A new vector with some components replaced, nested by dicts: `cv.replace(a=1.0, c={"b": x})`.

        The new values are broadcast to the shapes of the old ones; arrays tied to a replaced one change with it. Raises
        `KeyError` for unknown names, `ValueError` for shapes that do not fit and for two values for tied arrays.

        >>> ComponentVector(a=1, b={"c": [2, 3], "d": 4}).replace(a=0, b={"c": 9})
        ComponentVector(a=0, b=(c=[9, 9], d=4))
        """
        return updated(self, updates(self.layout, components))

    @property
    def at(self) -> "At[ComponentVector]":
        """Functional updates by path: `cv.at["c.a"].set(0.0)`, `.add`, `.multiply`, `.apply`.

        >>> cv = ComponentVector(a=1, b={"c": [2, 3]})
        >>> cv.at["b.c"].add(10).at["a"].apply(jnp.negative)
        ComponentVector(a=-1, b=(c=[12, 13]))
        """
        return At(self)

    def merge(self, **components: Any) -> "ComponentVector":
        """A new vector with root components replaced, whatever their shape, or appended.

        Raises `TypeError` unless the root is a dict, `ValueError` for names that are attributes of vectors.

        >>> ComponentVector(a=1, b=2).merge(b=[3, 4], c=5)
        ComponentVector(a=1, b=[3, 4], c=5)
        """
        for name in components:
            refuse_reserved(name)
        if self.layout.container != DICT:
            raise TypeError(f"merge needs named components, got {self.layout.summary()}")
        ties = [pair for pair in self.layout.ties if not any(path[0] in components for path in pair)]
        return ComponentVector.from_tree({**self.tree(), **numbers(components)}, dtype=self.dtype, ties=ties)

    def zeros_like(self) -> "ComponentVector":
        """Zeros with the same names."""
        return _make(jnp.zeros_like(self.data), self.layout)

    def copy(self) -> "ComponentVector":
        """A vector with its own copy of the data."""
        return _make(jnp.array(self.data, copy=True), self.layout)

    def to_pandas(self) -> Any:
        """A pandas Series by the `labels` of the elements; of a batch of vectors `(batch, n)` a DataFrame.

        Needs `pip install lux-sciml[tables]`, and raises `ImportError` without it.

        >>> ComponentVector(a=1, b=[2, 3]).to_pandas()  # doctest: +SKIP
        component
        a       1.0
        b[0]    2.0
        b[1]    3.0
        dtype: float32
        """
        return to_pandas(self.data, self.layout)

    @classmethod
    def from_pandas(cls, table: Any, like: "Layout | ComponentVector | None" = None) -> "ComponentVector":
        """The vector of a Series by label, or a batch of vectors from a DataFrame whose columns are labels.

        With `like`, a vector or its layout, the elements are found by label, in any order, and cast to its type;
        without, labels such as `layer_0.weight[0,3]` say what the components are, nested dicts by their dots. Raises
        `ValueError` for labels that are missing, unknown or there twice, `TypeError` for elements that are no numbers.

        >>> p = ComponentVector(a=1, b=[2, 3])
        >>> ComponentVector.from_pandas(p.to_pandas()[::-1], like=p).equals(p)  # doctest: +SKIP
        True
        """
        data, layout = from_pandas(table, None if like is None else as_layout(like).in_force())
        return cls(jnp.asarray(data, None if like is None else layout.flat_dtype), layout)

    # --- showing --------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"ComponentVector({show(self.data, self.layout)})"

    def table(self) -> str:
        """One line for each array: its path, shape, dtype, place in the vector, and range of values.

        >>> print(ComponentVector(a=1, b=[[2, 3]]).table())
        component  shape   dtype    place  values
        -----------------------------------------
        a          ()      float32  0:1    [1]
        b          (1, 2)  float32  1:3    [2, 3]
        """
        return table(self.data, self.layout)

    def _repr_html_(self) -> str:
        return table_html(self.data, self.layout)

    def __rich_repr__(self) -> Iterator[Any]:
        yield from self.items() if self.layout.children and not self.layout.is_sequence else [self.data]

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return library("treescope").repr_lib.render_dictionary_wrapper(
            object_type=type(self), wrapped_dict=dict(self.items()), path=path, subtree_renderer=subtree_renderer
        )


_STACK = object()  # beside the names among the kept parts
_RESERVED = frozenset(name for name in dir(ComponentVector) if not name.startswith("__"))


def refuse_reserved(name: str) -> None:
    """Raise `ValueError` if a component of this name would hide an attribute of ComponentVector."""
    if name in _RESERVED:
        raise ValueError(f"{name!r} is a method or property of ComponentVector; choose another name, such as '{name}_'")


def _make(data: Any, layout: Layout) -> ComponentVector:
    return make(ComponentVector, data, layout)


def view(part: jax.Array, layout: Layout) -> Any:
    """A component of a vector, or of a batch of them, as an array or a ComponentVector; constants as they are."""
    if layout.is_array:
        shape = part.shape[:-1] + layout.shape
        part = layout.check_kind(part) if part.shape == shape else layout.check_kind(part).reshape(shape)
        dtype = jax.dtypes.canonicalize_dtype(layout.dtype)
        return part if part.dtype == dtype else part.astype(dtype)
    if layout.container == NONE or isinstance(layout.container, Static):
        return layout.rebuild([])
    return _make(part, layout)


def named_like(x: Any, like: ComponentVector) -> ComponentVector:
    """`x`, a plain array of its elements or a dict, with the names of another vector; a vector as it is.

    Of a batch, also a dict or a vector whose components have the axes of the batch in front, `(batch, ...)`.
    """
    if like.ndim > 1 and (isinstance(x, dict) or (isinstance(x, ComponentVector) and x.ndim == 1)):
        return _batch_of(x.tree() if isinstance(x, ComponentVector) else x, like)
    if isinstance(x, ComponentVector):
        return x
    return ComponentVector.from_tree(x, like=like) if isinstance(x, dict) else ComponentVector(x, like.layout)


def _batch_of(tree: Any, like: ComponentVector) -> ComponentVector:
    """A batch of vectors from the components of all."""
    batch = like.shape[:-1]
    if any(jnp.shape(leaf)[: len(batch)] != batch for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"the components of a batch {batch} of vectors have its axes in front of their own, got {describe(tree)}"
        )
    of_one = functools.partial(ComponentVector.from_tree, like=like.layout)
    for _ in batch:
        of_one = jax.vmap(of_one)
    return of_one(tree)


@inspect.unwrap  # of the checks of tests: it says itself what is wrong
def concat(*vectors: ComponentVector) -> ComponentVector:
    """One vector with the components of several, ties included, in the widest of their types.

    Raises `ValueError` where two of them share a name, `TypeError` for vectors without names at the root.

    >>> concat(ComponentVector(a=1), ComponentVector(b=[2, 3]))
    ComponentVector(a=1, b=[2, 3])
    """
    out: dict[str, Any] = {}
    for cv in vectors:
        if not isinstance(cv, ComponentVector):
            raise TypeError(f"concat joins ComponentVectors, concat(a, b), got a {type(cv).__name__}")
        if cv.layout.container != DICT:
            raise TypeError(f"concat joins vectors of named components, got one of {cv.layout.summary()}")
        for name, value in cv.tree().items():
            if name in out:
                raise ValueError(f"component {name!r} is in two of the vectors; rename one, or nest them by keyword")
            out[name] = value
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*(cv.dtype for cv in vectors)) if vectors else None
    return ComponentVector.from_tree(out, dtype, ties=[pair for cv in vectors for pair in cv.layout.ties])
