"""Constants and frozen dicts: what may stand in a field."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.core.static import FrozenDict, freeze


def test_constants_compare_by_content():
    a = lux.Constant(np.arange(4.0))
    assert a == lux.Constant(jnp.arange(4.0)) and hash(a) == hash(lux.Constant(np.arange(4.0)))
    assert a == lux.Constant([0.0, 1.0, 2.0, 3.0]) and a == lux.Constant(a)
    for other in (np.arange(4), np.arange(4.0).reshape(2, 2), np.arange(4, dtype=np.float32), np.arange(4.0) + 1e-16):
        assert (a == lux.Constant(other)) == (np.asarray(other).tobytes() == a.value.tobytes() and other.ndim == 1)
    assert a != np.arange(4.0).tobytes()


def test_constants_hold_trees_and_random_keys():
    tree = {"matrix": np.eye(2), "name": "fem", "key": jax.random.key(1)}
    assert lux.Constant(tree) == lux.Constant({**tree, "matrix": jnp.eye(2)})
    assert lux.Constant(tree) != lux.Constant({**tree, "name": "fdm"})
    assert lux.Constant(tree) != lux.Constant({**tree, "key": jax.random.key(2)})


def test_constants_are_copies_and_read_only():
    source = np.zeros(3)
    constant = lux.Constant(source)
    source[0] = 1.0
    assert constant.value.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="read-only"):
        constant.value[0] = 1.0
    with pytest.raises(AttributeError, match="immutable"):
        constant.value = source


def test_constants_are_arrays_to_jax_and_numpy():
    matrix = np.arange(6.0).reshape(2, 3)
    constant, x = lux.Constant(matrix), jnp.ones(2)
    assert (x @ constant).tolist() == [3.0, 5.0, 7.0]
    assert jax.jit(lambda x: x @ constant)(x).tolist() == [3.0, 5.0, 7.0]
    assert np.asarray(constant) is constant.value and np.array_equal(np.array(constant), matrix)


def test_traced_arrays_are_refused():
    with pytest.raises(TypeError, match="a traced array cannot be a Constant: pass it in the call"):
        jax.jit(lambda x: lux.Constant(x).value)(jnp.ones(2))


def test_constants_print_and_pickle():
    constant = lux.Constant(np.eye(2))
    assert repr(constant) == "Constant([[1.0, 0.0], [0.0, 1.0]])"
    assert repr(lux.Constant({"a": 1})) == "Constant({'a': 1})"
    assert pickle.loads(pickle.dumps(constant)) == constant


def test_frozen_dicts():
    frozen = freeze({"a": [1, {"b": 2.0}]})
    assert frozen == FrozenDict(a=(1, FrozenDict(b=2.0))) and hash(frozen) == hash(FrozenDict(a=(1, FrozenDict(b=2.0))))
    assert frozen != FrozenDict(a=(1.0, FrozenDict(b=2.0)))
    assert repr(frozen) == "{'a': (1, {'b': 2.0})}"
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    with pytest.raises(TypeError):
        frozen["a"] = 1
    with pytest.raises(AttributeError, match="immutable"):
        frozen.a = 1


def test_arrays_of_other_libraries_are_numpys():
    pandas = pytest.importorskip("pandas")
    times = pandas.Series([0.0, 0.5, 1.0], name="time")
    assert lux.Constant(times) == lux.Constant([0.0, 0.5, 1.0])
    assert lux.NeuralODE(lux.Dense(2, 2), times) == lux.NeuralODE(lux.Dense(2, 2), [0.0, 0.5, 1.0])
