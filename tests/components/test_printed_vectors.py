"""What terminals, notebooks and their completion show of vectors and matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lux_sciml import ComponentMatrix, ComponentVector, hessian
from lux_sciml.inference import laplace_approximation


@pytest.fixture
def cv():
    return ComponentVector({"a": 1, "b": [2, 3], "c": {"d": [[4, 5, 6], [7, 8, 9]], "e.f": 10}, 5: 11, "<x>": 12})


def test_matrices_print_their_elements_with_names():
    p = ComponentVector(slope=2, offset=[1, -0.5])
    H = ComponentMatrix(jnp.arange(9.0).reshape(3, 3) / 3, p, p)
    title, *lines = repr(H).splitlines()
    assert title.startswith("ComponentMatrix(float64[3,3], rows=Layout(3 elements: slope (), offset (2,))")
    assert lines == [
        "           slope  offset[0]  offset[1]",
        "slope          0     0.3333     0.6667",
        "offset[0]      1      1.333      1.667",
        "offset[1]      2      2.333      2.667",
    ]
    plain = ComponentMatrix(jnp.ones((2, 3)), H.rows.of(jnp.ones(2)), p)
    assert [line.split()[0] for line in repr(plain).splitlines()[2:]] == ["[0]", "[1]"]
    fit = laplace_approximation(p, hessian(lambda p: p.slope**2 + p.slope * p.offset[0] + (p.offset**2).sum())(p))
    assert "offset[0]   -0.5          1 " in repr(fit.correlation) and "-0.3333" in repr(fit)


def test_large_matrices_have_gaps():
    wide = ComponentVector({f"layer_{i}": {"weight": np.ones((40, 50))} for i in range(3)})
    H = ComponentMatrix(np.arange(400.0).reshape(2, 200).repeat(30, 1), ComponentVector(a=[1, 2]), wide)
    _, head, first, _ = repr(H).splitlines()
    assert head.split()[0] == "layer_0.weight[0,0]" and head.split()[-1] == "layer_2.weight[39,49]"
    assert "..." in head.split() and "..." in first.split() and len(head) <= 110
    assert first.split()[1] == "0" and first.split()[-1] == "199"
    tall = repr(H.T).splitlines()[1:]
    assert len(tall) == 13 and [line.split()[0] for line in tall].count("...") == 1
    assert tall[-1].split() == ["layer_2.weight[39,49]", "199", "399"]


def test_tables_of_notebooks(cv):
    shown = cv._repr_html_()
    assert shown.startswith("<p>ComponentVector float64[12]</p><table><tr><th>component</th>")
    assert "<tr><th>c.d</th><td>(2, 3)</td><td>float64</td><td>3:9</td><td>[4, 5, 6, 7, 8, 9]</td></tr>" in shown
    assert "&lt;x&gt;" in shown and "<x>" not in shown
    H = ComponentMatrix(jnp.arange(144.0).reshape(12, 12), cv, cv)
    assert "<tr><th>c.d[0,1]</th><td>48</td>" in H._repr_html_() and "<x>" not in H._repr_html_()
    assert "<p>ComponentMatrix float64[12,12]</p>" in H._repr_html_()
    long = ComponentVector({f"layer_{i}": 0 for i in range(100)})._repr_html_()
    assert long.startswith("<details><summary>ComponentVector float64[100]</summary>") and "layer_99" in long


STRANGE = {
    "none": lambda x: None,
    "abstract": lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    "batch": lambda x: jnp.stack([x, x]),
    "scalar": lambda x: x.reshape(-1)[0],
    "shorter": lambda x: x[:2],
    "booleans": jnp.isnan,
    "integers": lambda x: x.astype(int),
    "key": lambda x: jax.random.key(0),
    "text": lambda x: "text",
    "object": lambda x: np.array([None]),
    "complex": lambda x: x.astype(complex),
    "nan": lambda x: x * np.nan,
    "bfloat16": lambda x: x.astype("bfloat16"),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("kind", STRANGE)
def test_whatever_a_transform_put_into_the_leaf_prints(cv, kind):
    vector = jax.tree.map(STRANGE[kind], cv)
    matrix = jax.tree.map(STRANGE[kind], ComponentMatrix(jnp.ones((12, 12)), cv, cv))
    assert repr(vector).startswith("ComponentVector(") and "c.d" in vector.table() and "c.d" in vector._repr_html_()
    assert repr(matrix).startswith("ComponentMatrix(") and "c.d" in matrix._repr_html_()


def test_traced_donated_and_distributed_vectors_print(cv):
    seen = []
    H = ComponentMatrix(jnp.ones((12, 12)), cv, cv)

    def f(cv, H):
        seen.extend(text for x in (cv, H) for text in (repr(x), x._repr_html_()))
        seen.append(cv.table())
        return cv.data.sum()

    for transformed in (jax.jit(f), jax.grad(f), jax.vmap(f, (None, None), axis_size=2), jax.jit(jax.grad(f))):
        transformed(cv, H)
    assert len(seen) == 20 and all("c.d" in text or "d=" in text for text in seen)
    given = cv.copy()
    given.data.delete()
    assert "12 elements" in repr(given) and "c.d" in given.table()
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(cv, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert repr(sharded) == repr(cv)


def test_names_complete_after_dots_and_in_brackets(cv):
    assert {"a", "b", "c"} < set(dir(cv)) and not {"5", "<x>", 5} & set(dir(cv))
    assert {"d"} < set(dir(cv.c)) and "e.f" not in dir(cv.c)
    keys = cv._ipython_key_completions_()
    assert keys == ["a", "b", "c", "5", "<x>", "c.d", "c.e.f"]
    for key in keys:
        cv[key]
    stack = ComponentVector(b=[{"a": 1}, {"a": 2}])
    assert "a" in dir(stack.b) and stack._ipython_key_completions_() == ["b", "b.0", "b.1", "b.0.a", "b.1.a"]
    dotted = ComponentVector({"a.b": 1.0, "a": {"b": 5.0}})
    assert dotted._ipython_key_completions_() == ["a.b", "a"], "('a', 'b') has no text of its own"
    J = ComponentMatrix(jnp.ones((1, 12)), ComponentVector(u=1), cv)
    assert ("u", "c.d") in J._ipython_key_completions_()
    for key in J._ipython_key_completions_():
        J[key]
