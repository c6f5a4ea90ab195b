"""Series of unequal length: what is padded is as each series alone, in values and in gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

ROWS = [[0.0, 0.2, 0.5, 1.0, 1.6], [0.3, 0.4, 1.1], [0.0, 0.8, 0.9], [0.7]]
XS = [np.stack([np.sin(np.array(ts) + i), np.cos(2 * np.array(ts))], -1) for i, ts in enumerate(ROWS)]
XS[0][1, 0] = XS[1][0, 1] = np.nan  # not observed
SERIES = lux.diffeq.pad(list(zip(ROWS, XS, strict=True)))
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
NET = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
ENCODER = lux.Chain(lux.IrregularSequence(), lux.Recurrence(lux.GRUCell(5, 4), reverse=True), lux.Dense(4, 4))


def solved(out):
    return out.xs if isinstance(out, lux.diffeq.LatentPath) else getattr(out, "ys", out)


def cde(interpolation, channels=3, **options):
    net, initial = lux.Dense(2, 2 * channels, jnp.tanh), lux.Dense(5 if "counts" in options else 3, 2)
    return lux.NeuralCDE(net, initial, interpolation=interpolation, output="ys", batching="vmap", **TIGHT, **options)


def latent(encoder):
    dynamics = lux.NeuralODE(lux.Dense(2, 2, jnp.tanh), output="ys", batching="vmap", **TIGHT)
    return lux.LatentODE(encoder, dynamics, lux.Dense(2, 2))


MEMBERS = {
    "NeuralODE": lux.NeuralODE(NET, batching="vmap", **TIGHT),
    "hermite": cde("hermite"),
    "linear, counts": cde("linear", 15, counts=True, window=3),
    "rectilinear": cde("rectilinear", 6, window=3),
    "ODERNN": lux.ODERNN(lux.GRUCell(4, 3), lux.Dense(3, 3, jnp.tanh), reverse=True, batching="vmap", **TIGHT),
    "LatentODE": latent(lux.Chain(lux.ODERNN(lux.GRUCell(4, 3), lux.Dense(3, 3), reverse=True, output="final",
                                             batching="vmap", **TIGHT), lux.Dense(3, 4))),
    "Recurrence": ENCODER,
}  # fmt: skip


def inputs(layer, series):
    return (series.data[:, 0], series) if isinstance(layer, lux.NeuralODE) else series


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MEMBERS)
def test_a_padded_series_is_as_it_is_alone(name):
    """The values, and the gradient by parameters and data; what stands in the padding is never read."""
    layer = MEMBERS[name]
    ps, st = lux.setup(jax.random.key(0), layer)
    st = lux.testmode(st)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(ps, values, series, weights):
        series = lux.diffeq.Series(series.times, values, series.mask)
        ys = solved(layer(inputs(layer, series), ps, st)[0])
        counted = series.mask[..., None] if ys.ndim == 3 else True
        return jnp.sum(weights * jnp.sum(jnp.where(counted, ys, 0) ** 2, tuple(range(1, ys.ndim)))), ys

    values = SERIES.values if name != "NeuralODE" else np.nan_to_num(SERIES.values)
    filled = np.where(SERIES.mask[..., None], values, np.array([9.0, np.nan, -9.0, np.nan])[:, None, None])
    times = np.where(SERIES.mask, SERIES.times, [[0.0], [np.nan], [-7.0], [5.0]])
    padded = lux.diffeq.Series(times, filled, SERIES.mask)
    (_, ys), (of_ps, of_values) = run(ps, filled, padded, jnp.array([0.0, 1.0, 1.0, 0.0]))
    short = lux.diffeq.Series(SERIES.times[1:3, :3], values[1:3, :3])
    (_, expected), (by_ps, by_values) = run(ps, short.values, short, jnp.ones(2))
    np.testing.assert_allclose(ys[1:3] if ys.ndim == 2 else ys[1:3, :3], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(of_ps.data, by_ps.data, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(of_values[1:3, :3], by_values, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(of_values[~SERIES.mask], 0.0)
    assert np.any(by_ps.data != 0) and np.all(np.isfinite(ys))
    if isinstance(layer, lux.NeuralODE | lux.NeuralCDE):  # one observation, no time goes on
        np.testing.assert_array_equal(ys[3], np.broadcast_to(ys[3, :1], ys[3].shape))


@pytest.mark.exhaustive
def test_repeated_last_times_are_padding_in_calls_of_all_kinds():
    """For each sample, in a `jax.vmap` of one's own, backward in time; the steps are those of the longest sample."""
    node = lux.NeuralODE(lux.Lambda(jnp.negative), batching="vmap", **TIGHT)
    ts, y0 = np.array([[0.0, 1.0, 2.0], [0.0, 0.5, 0.5], [0.0, -1.0, -1.0]]), jnp.ones((3, 1))
    exact = np.exp(-ts)
    one = node.replace(batching="joint", output="ys")
    for ys in (
        node((y0, ts), {}, {})[0].ys,
        jax.jit(lambda y0, ts: node((y0, ts), {}, {})[0].ys)(y0, ts),
        jax.vmap(lambda y0, ts: one((y0, ts), {}, {})[0])(y0, jnp.asarray(ts)),
        one((y0[0], ts[0]), {}, {})[0][None],
    ):
        np.testing.assert_allclose(ys[..., 0], exact[: len(ys)], rtol=1e-7)
    steps = node((y0, ts), {}, {})[0].stats["num_steps"]
    assert steps[0] > 2 * steps[1] > 0
    final, _ = node.replace(output="final")((y0, ts), {}, {})
    np.testing.assert_allclose(final[:, 0], exact[:, -1], rtol=1e-7)


LOSSES = [
    (loss, np.array([[0.2, 0.7], [0.4, 0.6], [0.3, 0.9]]), options)
    for loss, options in [
        *((getattr(lux.losses, name), {}) for name in ("mse", "mae", "huber", "msle", "poisson", "binary_cross_entropy",
                                                       "binary_focal", "hinge", "squared_hinge", "dice",
                                                       "siamese_contrastive")),
        (lux.losses.binary_focal, {"logits": False}),
    ]
]  # fmt: skip
OF_CLASSES = [lux.losses.cross_entropy, lux.losses.kl_divergence, lux.losses.focal]


@pytest.mark.exhaustive
def test_masked_losses_are_those_of_what_counts():
    """Bit by bit what is left out may be NaN, and has a zero gradient."""
    rows, mask = np.array([True, False, True]), np.array([[True, True], [False, False], [True, False]])
    for loss, values, options in LOSSES:
        prediction, target = values, values[::-1].round()
        holed = np.where(mask, prediction, np.nan), np.where(mask, target, np.nan)
        of_masked = functools.partial(loss, target=holed[1], mask=mask, **options)
        value, gradient = jax.value_and_grad(of_masked)(jnp.asarray(holed[0]))
        of_samples = loss is lux.losses.dice
        kept = [(x * mask)[mask.any(1)] if of_samples else x[mask] for x in (prediction, target)]
        cut = loss(*kept, **options)
        np.testing.assert_allclose(value, cut, rtol=1e-12)
        assert np.all(np.isfinite(gradient)) and np.all(gradient[~mask] == 0) and np.any(gradient[mask] != 0)
        series = lux.diffeq.Series(np.array([0.0, 1.0, 2.0]), holed[1], rows | True)
        np.testing.assert_allclose(loss(prediction, series, **options), value, rtol=1e-12)
    labels = np.array([1, 7, 0])
    for loss in OF_CLASSES:
        logits = jnp.where(rows[:, None], LOSSES[0][1], jnp.nan)
        value, gradient = jax.value_and_grad(lambda p, loss=loss: loss(p, labels, mask=rows))(logits)
        np.testing.assert_allclose(value, loss(logits[rows], labels[rows]), rtol=1e-12)
        assert np.all(gradient[1] == 0) and np.all(gradient[rows] != 0)
    none = lux.losses.mse(np.ones((2, 2)), np.zeros((2, 2)), "none", mask=np.array([True, False]))
    np.testing.assert_array_equal(none, [[1, 1], [0, 0]])
    assert lux.losses.mse(np.full(2, np.nan), np.zeros(2), mask=np.zeros(2, bool)) == 0


def test_the_bound_of_a_series_leaves_out_its_padding():
    path = lux.diffeq.LatentPath(jnp.zeros((4, 5, 2)), jnp.zeros((4, 1)), jnp.zeros((4, 1)))
    seen = SERIES.values[SERIES.mask[..., None] & ~np.isnan(SERIES.values)]
    expected = -0.5 * np.sum(seen**2 + np.log(2 * np.pi)) / 4
    np.testing.assert_allclose(lux.diffeq.elbo(path, SERIES, noise=1.0), expected)


def test_a_long_table_and_a_list_are_the_same_series():
    rows = [(name, t, *x) for name, ts, xs in zip("bac", ROWS[:3], XS, strict=False)
                                    for t, x in zip(ts, xs, strict=True)]  # fmt: skip
    order = [5, 0, 1, 8, 6, 2, 3, 9, 4, 7, 10]  # rows of several series between each other
    shuffled = map(np.array, zip(*(rows[i] for i in order), strict=True))
    columns = dict(zip(("who", "when", "u", "v"), shuffled, strict=True))
    series = lux.diffeq.pad(columns, id="who", time="when")
    assert series.ids.tolist() == ["a", "b", "c"] and len(series) == 3
    np.testing.assert_array_equal(series[1].values, SERIES.values[0])
    np.testing.assert_array_equal(series.times[[1, 0, 2]], SERIES.times[:3])
    np.testing.assert_array_equal(series[np.array([1, 2])].ids, ["b", "c"])
    only = lux.diffeq.pad(columns, id="who", time="when", values="v", length=8)
    assert only.values.shape == (3, 8, 1) and only.lengths.tolist() == [3, 5, 3]
    of_jax = jax.tree.map(jnp.asarray, series)
    assert of_jax.ids is None and len(list(of_jax)) == 3 and of_jax[-1].times.shape == (5,)
    early = lux.diffeq.pad(columns, id="who", time="when", start=0.0)  # "a" begins later, the others do not
    np.testing.assert_array_equal(early.times[:, :2], [[0.0, 0.3], [0.0, 0.2], [0.0, 0.8]])
    assert early.lengths.tolist() == [4, 5, 3] and np.isnan(early.values[0, 0]).all() and early.mask[0, 0]
    np.testing.assert_array_equal(early.values[0, 1:4], series.values[0, :3])
    pandas = pytest.importorskip("pandas")
    again = lux.diffeq.pad(pandas.DataFrame(columns), id="who", time="when")
    np.testing.assert_array_equal(again.values, series.values)


NODE = lux.NeuralODE(lux.Lambda(jnp.negative), batching="vmap", output="ys")
SERIES_OF = lux.diffeq.Series
BAD = {
    "turns": ([[0.0, 1.0, 0.5, 0.0]], [[True, True, True, False]], r"it turns after position 1: 1\.0, 0\.5"),
    "repeats": ([[0.0, 1.0, 1.0, 0.0]], [[True, True, True, False]], r"it turns after position 1: 1\.0, 1\.0"),
    "NaN": ([[0.0, np.nan, 1.0, 0.0]], [[True, True, True, False]], "not finite"),
    "empty": ([[0.0, 1.0, 1.0, 0.0]], [[False] * 4], "series 0 has no time in its mask: leave it out"),
    "gap": ([[0.0, 1.0, 2.0, 3.0]], [[True, False, True, False]], "the mask of series 0 has gaps"),
    "one NaN": ([[np.nan, 1.0, 2.0, 3.0]], [[True, False, False, False]], "the time of series 0 is not finite"),
}


def test_times_that_are_no_series_are_a_sentence_and_nan_where_they_are_traced():
    run = jax.jit(lambda series: NODE((jnp.ones((2, 1)), series), {}, {})[0])
    for ts, mask, sentence in BAD.values():
        series = SERIES_OF(np.array(ts), None, np.array(mask))
        with pytest.raises(ValueError, match=sentence):
            NODE((jnp.ones((1, 1)), series), {}, {})
        both = SERIES_OF(np.array([*ts, [0.0, 1.0, 2.0, 3.0]]), None, np.array([*mask, [True] * 4]))
        ys = run(both)
        assert jnp.all(jnp.isnan(ys[0])) and jnp.all(jnp.isfinite(ys[1]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.diffeq.pad([]), "no series"),
        (lambda: lux.diffeq.pad([([0.0], [1.0]), ([], [])]), "series 1 is empty"),
        (lambda: lux.diffeq.pad([([0.0, 1.0, 0.5], [1.0, 2, 3])]), "series 0 must increase; after position 1"),
        (lambda: lux.diffeq.pad([([0.0, np.nan], [1.0, 2])]), "series 0 has a time that is not finite: nan"),
        (lambda: lux.diffeq.pad([([0.0, 1.0], [1.0])]), r"series 0 has times .*\(2,\) and \(1,\)"),
        (lambda: lux.diffeq.pad([([0.0], [[1.0]]), ([0.0], [[1.0, 2]])]), r"same channels .*\[\(1,\), \(2,\)\]"),
        (lambda: lux.diffeq.pad([([0.0, 1.0], [1.0, 2])], length=1), "less than the 2 times"),
        (lambda: lux.diffeq.pad({"who": [1], "time": [0.0], "x": [1.0]}), "'who', 'time', 'x', and none for 'id'"),
        (lambda: lux.diffeq.pad({"id": [1.0, np.nan], "time": [0.0, 1], "x": [1.0, 2]}), "row 1 of the table has"),
        (lambda: lux.diffeq.pad({"id": [1], "time": ["noon"], "x": [1.0]}), "series 1 holds numbers, got .*noon"),
        (lambda: lux.diffeq.pad([(np.array(["2020-01-01"], "M8[D]"), [1.0])]), r"your own, got datetime64\[D"),
        (lambda: SERIES_OF(np.zeros((2, 3)), None, np.ones((2, 2), bool)), r"got \(2, 3\) and \(2, 2\)"),
        (lambda: SERIES_OF(np.zeros((2, 3)), None, np.ones((2, 3))), "True and False, got float64"),
        (lambda: SERIES_OF(np.zeros((2, 3)), np.zeros((2, 4))), r"values of shape \(batch, times, ...\), got \(2, 4\)"),
        (lambda: lux.diffeq.pad([([1.0], [2.0]), ([0.5], [2.0])], start=0.7), "got 0.7; series 1 is from 0.5 on"),
        (lambda: lux.losses.mse(np.ones(2), np.ones(2), mask=np.ones((3, 2), bool)), r"first axes, got \(3, 2\)"),
        (lambda: lux.losses.mse(np.ones(2), np.ones(2), mask=np.ones(2)), "a mask holds True .* got float64"),
        (lambda: NODE((jnp.ones((3, 1)), SERIES[:2]), {}, {}), "the same number in all"),
        (lambda: NODE((jnp.ones((2, 1)), np.array([[0.0, 1.0], [2.0, 2.0]])), {}, {}), r"position 0: 2\.0, 2\.0"),
        (lambda: NODE((SERIES, jnp.ones((3, 1))), {}, {}), r"the initial value before the series: \(y0, series\)"),
        (lambda: NODE.replace(batching="joint")((jnp.ones((3, 1)), SERIES), {}, {}), "with batching='vmap'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
