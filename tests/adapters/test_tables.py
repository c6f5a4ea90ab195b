"""Vectors and solutions as tables of pandas and xarray, and as rich and treescope show them."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

pandas = pytest.importorskip("pandas", reason="makes tables: `make test-extras` installs it")
xarray = pytest.importorskip("xarray")
BATCH = np.ones((2, 2), "float32")
P = lux.ComponentVector(rate=0.5, net={"weight": [[1.0, 2.0], [3.0, 4.0]], "bias": [5.0, 6.0]})


def test_vectors_are_series_and_batches_are_frames(tmp_path):
    table = P.to_pandas()
    assert table["net.weight[1,0]"] == 3.0 and list(table.index) == P.labels()
    assert lux.ComponentVector.from_pandas(table).equals(P)
    assert lux.ComponentVector.from_pandas(table[::-1].astype("float32"), like=P).equals(P)
    batch = jax.vmap(lambda k: P * k)(jnp.arange(3, dtype="float32"))
    frame = batch.to_pandas()
    assert frame.shape == (3, 7) and lux.ComponentVector.from_pandas(frame[frame.columns[::-1]], like=P).equals(batch)
    table.to_csv(tmp_path / "p.csv")
    read = pandas.read_csv(tmp_path / "p.csv", index_col=0)
    assert lux.ComponentVector.from_pandas(read.iloc[:, 0], like=P).equals(P)
    half = P.astype("bfloat16")
    assert lux.ComponentVector.from_pandas(half.to_pandas(), like=half).equals(half)
    covariance = lux.hessian(lambda p: jnp.sum(p**2))(P).to_pandas()
    assert covariance.loc["rate", "rate"] == 2 and covariance.loc["rate", "net.bias[0]"] == 0
    tied = lux.parameters.share_parameters(lux.ComponentVector(a=1.0, b=1.0), [("a", "b")])
    assert len(tied.to_pandas()) == 1


def test_what_is_no_table_of_a_vector_is_told():
    table = P.to_pandas()
    cases = [
        (lambda: lux.ComponentVector.from_pandas([1.0]), TypeError, "got a list"),
        (lambda: lux.ComponentVector.from_pandas(table.drop("rate"), like=P), ValueError, "it lacks rate"),
        (
            lambda: lux.ComponentVector.from_pandas(table.rename({"rate": "speed"}), like=P),
            ValueError,
            "rate and adds speed",
        ),
        (lambda: lux.ComponentVector.from_pandas(table.drop("net.bias[0]")), ValueError, r"lacks net\.bias\[0\]"),
        (lambda: lux.ComponentVector.from_pandas(pandas.concat([table, table])), ValueError, "'net.bias.0.' twice"),
        (lambda: lux.ComponentVector.from_pandas(table.astype(str)), TypeError, "not numbers"),
        (
            lambda: jax.vmap(jax.vmap(lambda k: P * k))(BATCH).to_pandas(),
            ValueError,
            "a row for each vector",
        ),
    ]
    for call, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            call()


def test_flat_dicts_have_all_arrays_by_path():
    _, st = lux.setup(jax.random.key(0), lux.Chain(lux.BatchNorm(2), lux.Dropout(0.5)))
    flat = lux.flat_dict({"ps": P, "st": st, "list": [jnp.ones(2)]}, "/")
    assert list(flat) == [
        "ps/rate", "ps/net/weight", "ps/net/bias", "st/layer_0/running_mean", "st/layer_0/running_var", "list/0",
    ]  # fmt: skip
    np.testing.assert_array_equal(flat["ps/net/weight"], P.net.weight)
    with pytest.raises(ValueError, match=r"two arrays have the path 'a\.b'"):
        lux.flat_dict({"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})


@pytest.mark.slow
def test_solutions_are_datasets():
    ts = jnp.linspace(0.0, 1.0, 4)
    node = lux.NeuralODE(lux.Lambda(lambda y: -y), ts=ts)
    sol, _ = node(jnp.array([1.0, 2.0]), {}, {})
    table = lux.solution_to_xarray(sol, names=("prey", "predator"))
    np.testing.assert_array_equal(table.predator, sol.ys[:, 1])
    assert table.prey.dims == ("time",) and table.attrs["successful"] == 1 and table.attrs["num_steps"] > 0
    assert lux.solution_to_xarray(sol).y.dims == ("time", "y_0")
    named, _ = node(lux.ComponentVector(S=1.0, I=[0.5, 0.25]), {}, {})
    table = lux.solution_to_xarray(named)
    assert table.S.sel(time=1.0, method="nearest") == named.ys.S[-1] and table["I"].dims == ("time", "I_0")

    each = node.replace(batching="vmap")
    batch, _ = each(jnp.ones((3, 2)), {}, {})
    table = lux.solution_to_xarray(batch, names=["u", "v"])
    assert table.u.dims == ("sample", "time") and table.time.shape == (4,) and table.attrs["successful"] == [1, 1, 1]
    several, _ = each.replace(ts=None)((jnp.ones((2, 2)), jnp.stack([ts, 2 * ts])), {}, {})
    table = lux.solution_to_xarray(several, names="y")
    assert table.y.dims == ("sample", "step", "y_0") and table.time.dims == ("sample", "step")
    steps, _ = node.replace(saveat=diffrax.SaveAt(t0=True, steps=True), max_steps=64)(jnp.ones(2), {}, {})
    table = lux.solution_to_xarray(steps)
    assert table.sizes["time"] == int(steps.stats["num_accepted_steps"]) + 1 and bool(table.y.notnull().all())

    for names, sentence in [(("u",), "2 variables, and 1 names"), (("u", "u"), "two variables would be called 'u'")]:
        with pytest.raises(ValueError, match=sentence):
            lux.solution_to_xarray(sol, names=names)
    tree = eqx.tree_at(lambda sol: sol.ys, sol, {"v": sol.ys[:, 0], "u": sol.ys[:, 1]})
    with pytest.raises(ValueError, match="variables of a dict have names of their own"):
        lux.solution_to_xarray(tree, names=("v", "u"))
    with pytest.raises(TypeError, match=r'got a ArrayImpl.*`output="solution"`'):
        lux.solution_to_xarray(sol.ys)


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")  # treescope's own
def test_rich_and_treescope_show_the_components():
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=60, record=True)
    with console.capture() as captured:
        console.print(P)
    assert "bias=Array([5., 6.]" in captured.get()
    assert "'rate'" in pytest.importorskip("treescope").render_to_text(P)
