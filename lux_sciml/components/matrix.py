"""ComponentMatrix: a matrix whose rows and columns have names."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arithmetic import NamedArray, fill, make, register
from .layout import Layout, as_layout, layout_of
from .nodes import ARRAY, is_path
from .printing import completions, matrix_html, show_matrix
from .tables import matrix_to_pandas
from .vector import ComponentVector, view


@register
class ComponentMatrix(NamedArray):
    """A matrix `data` `(m, n)` with the layouts `rows` and `columns`, as `lux.jacobian` and `lux.hessian` return it.

    `J["a", "c"]` is the block of the components `a` and `c`, shaped `(*shape_a, *shape_c)`; where one of them is a
    sub-tree, or a list of names, the block is again a ComponentMatrix. `:` stands for all rows or columns. The output
    of a function without names has plain rows, indexed as the output is: `J[0, "c"]`, `J[:, "c"]`. Without any name,
    `J[...]` indexes `data`.

    `@`, `solve` and `T` carry the names along and raise `ValueError` where they do not fit. Sums, and products with
    scalars, work as for ComponentVectors.

    >>> u, v = ComponentVector(a=1, b=[2, 3]), ComponentVector(c=[1, 10])
    >>> J = outer(u, v)
    >>> J["b", "c"]
    Array([[ 2., 20.],
           [ 3., 30.]], dtype=float32)
    >>> J.T @ u
    ComponentVector(c=[14, 140])
    """

    __slots__ = ()

    def __init__(self, data: Any, rows: Layout | ComponentVector, columns: Layout | ComponentVector):
        rows, columns = as_layout(rows).in_force(), as_layout(columns).in_force()
        data = jnp.asarray(data)
        if data.shape[-2:] != (rows.size, columns.size):
            raise ValueError(
                f"expected a matrix of shape ({rows.size}, {columns.size}), got {data.shape}; the rows have "
                f"{rows.summary()}, the columns {columns.summary()}"
            )
        fill(self, data, (rows, columns))

    # --- as an array ----------------------------------------------------------------------------------------

    @property
    def rows(self) -> Layout:
        """The names of the rows."""
        return self._names[0]

    @property
    def columns(self) -> Layout:
        """The names of the columns."""
        return self._names[1]

    @property
    def _named_shape(self) -> tuple[int, ...]:
        return self.rows.size, self.columns.size

    def _require_same_names(self, other: "ComponentMatrix") -> None:
        self.rows.require_same(other.rows)
        self.columns.require_same(other.columns)

    def _noun(self) -> str:
        return f"a matrix of shape {self._named_shape}"

    def to_pandas(self) -> Any:
        """A pandas DataFrame with the labels of rows and columns, such as one of covariances.

        Needs `pip install lux-sciml[tables]`, and raises `ImportError` without it; `ValueError` for several matrices.
        """
        return matrix_to_pandas(self.data, self.rows, self.columns)

    def __repr__(self) -> str:
        return show_matrix(self.data, self.rows, self.columns)

    def _repr_html_(self) -> str:
        return matrix_html(self.data, self.rows, self.columns)

    def _ipython_key_completions_(self) -> list[tuple[str, str]]:
        return list(itertools.product(completions(self.rows)[:100], completions(self.columns)[:100]))

    # --- reading --------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        names = (*key,) if isinstance(key, tuple) else (key,)
        if not any(map(_is_name, names)):
            return self.data[key]
        if not isinstance(key, tuple) or len(key) != 2:
            raise KeyError(f"a block has two names, J['a', 'c'] or J[:, 'c'], got {key!r}")
        (rows, row_layout), (columns, column_layout) = _place(self.rows, key[0]), _place(self.columns, key[1])
        block = self.data[..., rows, :][..., columns]
        if row_layout.is_array and column_layout.is_array:
            return block.reshape(*block.shape[:-2], *row_layout.shape, *column_layout.shape)
        return ComponentMatrix(block, row_layout, column_layout)

    @property
    def T(self) -> "ComponentMatrix":
        """The transpose."""
        return ComponentMatrix(jnp.swapaxes(self.data, -1, -2), self.columns, self.rows)

    def diagonal(self) -> ComponentVector:
        """The diagonal. Raises `ValueError` where rows and columns have different names.

        >>> u = ComponentVector(a=1, b=[2, 3])
        >>> outer(u, u).diagonal()
        ComponentVector(a=1, b=[4, 9])
        """
        self.rows.require_same(self.columns)
        return view(jnp.diagonal(self.data, axis1=-2, axis2=-1), self.rows)

    # --- linear algebra -------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> Any:
        """The product with a vector, an array `(n,)` or `(n, k)`, or a matrix; a vector has the names of the rows."""
        if isinstance(other, ComponentMatrix):
            self.columns.require_same(other.rows)
            return ComponentMatrix(self.data @ other.data, self.rows, other.columns)
        return _product(self.data, _right_side(other, self.columns), self.rows)

    def __rmatmul__(self, other: Any) -> Any:
        """`v @ J`: the product from the left, with the names of the columns."""
        if layout_of(other) is not None:
            return self.T @ other
        return _product(jnp.swapaxes(self.data, -1, -2), jnp.asarray(other), self.columns)

    def solve(self, other: Any) -> Any:
        """The solution `x` of `J @ x = other`, with the names of the columns; `other` is as for `@`.

        By LU factorization; a singular matrix gives non-finite elements. Raises `ValueError` unless the matrix is
        square: `jnp.linalg.lstsq(J.data, b)` solves other systems.

        >>> u = ComponentVector(a=1, b=4)
        >>> ComponentMatrix(jnp.array([[1.0, 0.0], [1.0, 2.0]]), u, u).solve(u)
        ComponentVector(a=1, b=1.5)
        """
        if self.rows.size != self.columns.size:
            raise ValueError(
                f"solve needs a square matrix, got shape {self.shape}; `jnp.linalg.lstsq(J.data, b)` solves others"
            )
        if isinstance(other, ComponentMatrix):
            self.rows.require_same(other.rows)
            return ComponentMatrix(jnp.linalg.solve(self.data, other.data), self.columns, other.columns)
        right = _right_side(other, self.rows)
        x = jnp.linalg.solve(self.data, right)
        return view(x, self.columns) if right.ndim == 1 else x

    def as_operator(self, tags: object = ()) -> Any:
        """The matrix as a `lineax` operator, from vectors with the names of the columns to those of the rows.

        `tags` are lineax's: `lineax.positive_semidefinite_tag`, for instance.

        >>> import lineax
        >>> u = ComponentVector(a=1, b=[2, 4])
        >>> operator = ComponentMatrix(jnp.diag(u.data), u, u).as_operator()
        >>> lineax.linear_solve(operator, u).value
        ComponentVector(a=1, b=[1, 1])
        """
        import lineax

        block = self.data.reshape(*_shape(self.rows), *_shape(self.columns))
        output = _as_pytree(jax.ShapeDtypeStruct(_shape(self.rows), self.dtype), self.rows)
        return lineax.PyTreeLinearOperator(_as_pytree(_as_pytree(block, self.columns), self.rows), output, tags)


def outer(u: Any, v: Any) -> ComponentMatrix:
    """The outer product of two vectors, trees or arrays, as a ComponentMatrix of their names.

    >>> outer(ComponentVector(a=2, b=3), ComponentVector(c=[1, 10]))["b", "c"]
    Array([ 3., 30.], dtype=float32)
    """
    rows, columns = Layout.of(u), Layout.of(v)
    return ComponentMatrix(jnp.outer(rows.ravel(u), columns.ravel(v)), rows, columns)


def _is_name(key: Any) -> bool:
    return is_path(key) or (isinstance(key, list) and bool(key) and all(map(is_path, key)))


def _is_everything(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _place(layout: Layout, key: Any) -> tuple[Any, Layout]:
    """Where a component lies on one axis, and its layout."""
    if key is Ellipsis or _is_everything(key):
        return slice(None), layout
    if layout.container == ARRAY and not _is_name(key):
        index = np.arange(layout.size).reshape(layout.shape)[key]
        return np.ravel(index), Layout(ARRAY, {}, np.shape(index), layout.dtype)
    if isinstance(key, list):
        chosen = layout.select(*key)
        return np.concatenate([np.ravel(layout.index(leaf.path)) for leaf in chosen.blocks]), chosen
    node = layout.find(key)[1]
    return (np.ravel(layout.index(key)) if node.ties else layout.slice(key)), node.untied


def _right_side(other: Any, layout: Layout) -> jax.Array:
    if layout_of(other) is not None:
        layout.require_same(other.layout)
        return other.data
    other = jnp.asarray(other)
    if layout.is_array and other.shape == layout.shape:
        other = other.reshape(-1)
    if other.ndim == 0 or other.shape[0] != layout.size:
        raise ValueError(f"an array of shape {other.shape} does not fit {layout.summary()}")
    return other


def _product(matrix: jax.Array, right: jax.Array, layout: Layout) -> Any:
    return view(matrix @ right, layout) if right.ndim == 1 else matrix @ right


def _as_pytree(x: Any, layout: Layout) -> Any:
    return x if layout.is_array else make(ComponentVector, x, layout)


def _shape(layout: Layout) -> tuple[int, ...]:
    return layout.shape if layout.is_array else (layout.size,)
