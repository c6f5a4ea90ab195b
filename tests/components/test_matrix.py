"""ComponentMatrix: named rows and columns."""

import pickle

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

from lux_sciml import ComponentMatrix, ComponentVector
from lux_sciml.components import outer


@pytest.fixture
def rows():
    return ComponentVector(a=[1, 2], b={"c": [[3, 4, 5]], "d": 6})


@pytest.fixture
def columns():
    return ComponentVector(x=[[1, 2], [3, 4]], y=5)


@pytest.fixture
def J(rows, columns):
    return ComponentMatrix(jnp.arange(30.0).reshape(6, 5), rows, columns)


def test_blocks_have_the_shapes_of_both_components(J):
    full = np.arange(30.0).reshape(6, 5)
    np.testing.assert_array_equal(J["a", "x"], full[:2, :4].reshape(2, 2, 2))
    np.testing.assert_array_equal(J["b.c", "x"], full[2:5, :4].reshape(1, 3, 2, 2))
    np.testing.assert_array_equal(J[("b", "d"), "y"], full[5, 4])
    assert J["b.d", "y"].shape == ()


def test_blocks_of_sub_trees_keep_names(J):
    full = np.arange(30.0).reshape(6, 5)
    assert isinstance(J["b", "x"], ComponentMatrix)
    np.testing.assert_array_equal(J["b", "x"]["c", :], full[2:5, :4].reshape(1, 3, 2, 2))
    np.testing.assert_array_equal(J[:, "y"].data, full[:, 4:])
    np.testing.assert_array_equal(J["a", ...].data, full[:2])
    np.testing.assert_array_equal(J["a", :][1, "x"], full[1, :4].reshape(2, 2))


def test_numbers_index_the_data(J):
    assert J[1, 2] == 7 and J[0].shape == (5,) and J[:, 1].shape == (6,)


def test_bad_keys(J):
    with pytest.raises(KeyError, match="two names"):
        J["a"]
    with pytest.raises(KeyError, match="two names"):
        J["a", "x", "y"]
    with pytest.raises(KeyError, match="no component 'z'; what there is: x, y"):
        J["a", "z"]
    with pytest.raises(ValueError, match=r"expected a matrix of shape \(6, 6\), got \(6, 5\)"):
        ComponentMatrix(J.data, J.rows, J.rows)
    with pytest.raises(AttributeError, match="immutable"):
        J.data = 1


def test_products(J, rows, columns):
    full = np.arange(30.0).reshape(6, 5)
    product = J @ columns
    assert product.layout is rows.layout
    np.testing.assert_allclose(product.data, full @ np.asarray(columns))
    assert (J @ columns.data).equals(product)
    left = rows @ J
    assert left.layout is columns.layout and left.equals(J.T @ rows)
    assert (np.asarray(rows) @ J).equals(left)
    assert (J @ np.ones((5, 2))).shape == (6, 2)
    gram = J.T @ J
    assert gram.rows is gram.columns is columns.layout
    np.testing.assert_allclose(gram.data, full.T @ full)
    with pytest.raises(ValueError, match="layouts differ"):
        J @ rows
    with pytest.raises(ValueError, match="layouts differ"):
        J @ J
    with pytest.raises(ValueError, match=r"an array of shape \(4,\) does not fit"):
        J @ np.ones(4)
    with pytest.raises(ValueError, match="layouts differ"):
        rows @ columns


def test_arithmetic(J):
    np.testing.assert_allclose((2 * J - J / 2 + J.data).data, 2.5 * np.asarray(J))
    assert isinstance(-J, ComponentMatrix) and isinstance(J == J, jax.Array)
    with pytest.raises(ValueError, match="layouts differ"):
        J + J.T
    with pytest.raises(ValueError, match=r"does not fit a matrix of shape \(6, 5\)"):
        J + np.ones(5)
    with pytest.raises(TypeError):
        J + ComponentVector(a=1)


def test_outer(rows, columns):
    product = outer(rows, columns)
    np.testing.assert_array_equal(product["b.c", "x"], np.multiply.outer(rows.b.c, columns.x))
    assert outer(rows, jnp.ones((2, 2))).shape == (6, 4)


def test_solve_and_diagonal(columns):
    A = ComponentMatrix(jnp.diag(columns.data) + 0.1, columns, columns)
    x = A.solve(columns)
    assert x.layout is columns.layout
    np.testing.assert_allclose((A @ x).data, columns.data, rtol=1e-12)
    np.testing.assert_allclose(A.solve(columns.data).data, x.data)
    np.testing.assert_allclose(A.solve(A).data, np.eye(5), atol=1e-12)
    assert A.solve(jnp.ones((5, 2))).shape == (5, 2)
    np.testing.assert_allclose(A.diagonal().x, columns.x + 0.1)
    with pytest.raises(ValueError, match="solve needs a square matrix"):
        outer(columns, ComponentVector(a=1)).solve(columns)
    with pytest.raises(ValueError, match="layouts differ"):
        A.solve(ComponentVector(a=[1, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match="layouts differ"):
        outer(columns, ComponentVector(z=[1, 2, 3, 4, 5])).diagonal()


def test_named_rows_of_other_names_solve_to_the_names_of_the_columns():
    equations, unknowns = ComponentVector(mass=4, charge=9), ComponentVector(x=0, y=0)
    A = ComponentMatrix(jnp.diag(jnp.array([2.0, 3.0])), equations, unknowns)
    assert A.solve(equations).equals(ComponentVector(x=2, y=3))


def test_as_operator(columns):
    A = ComponentMatrix(jnp.diag(columns.data) + 0.1, columns, columns)
    operator = A.as_operator(lineax.positive_semidefinite_tag)
    for solver in (lineax.AutoLinearSolver(well_posed=True), lineax.CG(rtol=1e-12, atol=1e-12)):
        solution = lineax.linear_solve(operator, columns, solver).value
        np.testing.assert_allclose(solution.data, A.solve(columns).data, rtol=1e-9)
    assert operator.mv(columns).equals(A @ columns)
    plain = ComponentMatrix(jnp.ones((4, 5)), columns.layout.of(jnp.ones((2, 2))), columns).as_operator()
    assert plain.mv(columns).shape == (2, 2)


def test_transforms_and_pickle(J, columns):
    doubled = jax.jit(lambda J: 2 * J)(J)
    assert doubled.rows is J.rows and doubled["a", "y"].shape == (2,)
    batch = jax.vmap(lambda s: J * s)(jnp.arange(3.0))
    assert batch["a", "x"].shape == (3, 2, 2, 2) and batch.T.shape == (3, 5, 6)
    np.testing.assert_array_equal(jax.vmap(lambda J: (J @ columns).data)(batch)[1], (J @ columns).data)
    gradient = jax.grad(lambda J: J["a", "x"].sum())(J)
    assert gradient["a", "x"].sum() == 8 and gradient.data.sum() == 8
    back = pickle.loads(pickle.dumps(J))
    assert back.rows is J.rows and np.array_equal(back, J)
    exported = jax.export.export(jax.jit(lambda J: J.T))(J)
    assert jax.export.deserialize(exported.serialize()).call(J).rows is J.columns
    assert repr(J).startswith("ComponentMatrix(float64[6,5], rows=Layout(6 elements: a (2,)")
    assert "6 elements" in repr(jax.eval_shape(lambda J: J, J))


def test_tied_columns():
    tied = ComponentVector.from_tree({"x": jnp.ones(2), "z": {"w": jnp.ones(2)}}, ties=[("x", "z.w")])
    J = ComponentMatrix(jnp.arange(4.0).reshape(2, 2), tied, tied)
    np.testing.assert_array_equal(J["x", "z.w"], J.data)
    np.testing.assert_array_equal(J["z", "z"].data, J.data)
