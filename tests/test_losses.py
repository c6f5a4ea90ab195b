"""Losses against their formulas, in NumPy."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml import losses

RNG = np.random.default_rng(0)
P, Y = RNG.uniform(0.1, 0.9, (4, 3)), RNG.uniform(0.1, 0.9, (4, 3))
LOGITS, LABELS = RNG.normal(size=(4, 3)), np.array([0, 2, 1, 1])
Q, ONE_HOT = P / P.sum(1, keepdims=True), np.eye(3)[LABELS]
SOFT = Y / Y.sum(1, keepdims=True)
HARD = (Y > 0.5).astype(float)
SIGNS = np.where(Y > 0.5, 1.0, -1.0)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
SIGMOID = 1 / (1 + np.exp(-LOGITS))
LOG = {"logits": False}


def binary(p, y):
    return -y * np.log(p) - (1 - y) * np.log(1 - p)


def hard_focal(p, y, gamma):
    right = np.where(y == 1, p, 1 - p)
    return -((1 - right) ** gamma) * np.log(right)


CASES = {
    "mse": (losses.mse, P, Y, {}, (P - Y) ** 2),
    "mae": (losses.mae, P, Y, {}, np.abs(P - Y)),
    "huber inside": (losses.huber, P, Y, {}, 0.5 * (P - Y) ** 2),
    "huber outside": (losses.huber, P, Y + 9, {"delta": 2}, 2 * (np.abs(P - Y - 9) - 1)),
    "msle": (losses.msle, P, Y, {"epsilon": 0.1}, np.log((P + 0.1) / (Y + 0.1)) ** 2),
    "poisson": (losses.poisson, P, Y, {}, P - Y * np.log(P)),
    "cross_entropy": (losses.cross_entropy, Q, SOFT, LOG, -(SOFT * np.log(Q)).sum(1)),
    "cross_entropy of logits": (losses.cross_entropy, LOGITS, SOFT, {}, -(SOFT * np.log(SOFTMAX)).sum(1)),
    "cross_entropy of labels": (losses.cross_entropy, LOGITS, LABELS, {}, -np.log(SOFTMAX[range(4), LABELS])),
    "cross_entropy along the first axis": (
        losses.cross_entropy,
        LOGITS.T,
        LABELS,
        {"axis": 0},
        -np.log(SOFTMAX[range(4), LABELS]),
    ),
    "cross_entropy smoothed": (
        losses.cross_entropy,
        Q.T,
        ONE_HOT.T,
        {"label_smoothing": 0.3, "axis": 0, **LOG},
        -((0.7 * ONE_HOT + 0.1) * np.log(Q)).sum(1),
    ),
    "kl_divergence": (losses.kl_divergence, Q, SOFT, LOG, (SOFT * np.log(SOFT / Q)).sum(1)),
    "kl_divergence of labels": (losses.kl_divergence, LOGITS, LABELS, {}, -np.log(SOFTMAX[range(4), LABELS])),
    "focal": (losses.focal, Q, SOFT, LOG, -(SOFT * (1 - Q) ** 2 * np.log(Q)).sum(1)),
    "focal of logits": (
        losses.focal,
        LOGITS,
        LABELS,
        {"gamma": 1.5},
        -((1 - SOFTMAX) ** 1.5 * np.log(SOFTMAX))[range(4), LABELS],
    ),
    "focal without gamma": (losses.focal, LOGITS, SOFT, {"gamma": 0}, -(SOFT * np.log(SOFTMAX)).sum(1)),
    "binary_cross_entropy": (losses.binary_cross_entropy, P, Y, LOG, binary(P, Y)),
    "binary_cross_entropy of logits": (losses.binary_cross_entropy, LOGITS, Y, {}, binary(SIGMOID, Y)),
    "binary_cross_entropy, one target": (losses.binary_cross_entropy, LOGITS, 1, {}, -np.log(SIGMOID)),
    "binary_cross_entropy smoothed": (
        losses.binary_cross_entropy,
        P,
        HARD,
        {"label_smoothing": 0.2, **LOG},
        binary(P, 0.8 * HARD + 0.1),
    ),
    "binary_focal": (losses.binary_focal, P, HARD, LOG, hard_focal(P, HARD, 2)),
    "binary_focal of logits": (losses.binary_focal, LOGITS, HARD, {"gamma": 3}, hard_focal(SIGMOID, HARD, 3)),
    "hinge": (losses.hinge, 3 * LOGITS, SIGNS, {}, np.maximum(0, 1 - 3 * LOGITS * SIGNS)),
    "squared_hinge": (losses.squared_hinge, 3 * LOGITS, SIGNS, {}, np.maximum(0, 1 - 3 * LOGITS * SIGNS) ** 2),
    "dice": (
        losses.dice,
        P,
        Y,
        {"smooth": 0.5},
        1 - (2 * (P * Y).sum(1) + 0.5) / ((P**2).sum(1) + (Y**2).sum(1) + 0.5),
    ),
    "siamese_contrastive": (
        losses.siamese_contrastive,
        P,
        HARD,
        {"margin": 0.5},
        np.where(HARD == 1, np.maximum(0, 0.5 - P) ** 2, P**2),
    ),
}


@pytest.mark.parametrize(("loss", "prediction", "target", "options", "expected"), CASES.values(), ids=CASES)
def test_losses_are_their_formulas(loss, prediction, target, options, expected):
    prediction = jnp.asarray(prediction)
    assert np.allclose(loss(prediction, target, "none", **options), expected, rtol=1e-12)
    assert np.allclose(loss(prediction, target, **options), expected.mean(), rtol=1e-12)
    assert np.allclose(loss(prediction, target, reduction="sum", **options), expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.kl_divergence, losses.focal])
def test_certain_predictions_have_finite_losses_and_gradients(loss):
    for options in ({}, LOG):
        for prediction in (ONE_HOT, 1 - ONE_HOT):
            value, gradient = jax.value_and_grad(loss)(jnp.asarray(prediction), LABELS, **options)
            assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_binary_losses_at_certainty_have_finite_gradients(gamma):
    for prediction in (jnp.zeros(2), jnp.ones(2)):
        assert np.isfinite(jax.grad(losses.binary_focal)(prediction, np.array([0, 1]), gamma=gamma, logits=False)).all()
    assert np.isfinite(jax.grad(losses.binary_focal)(jnp.array([-800.0, 800.0]), np.array([0, 1]), gamma=gamma)).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["int32", "uint8", "bool"])
@pytest.mark.parametrize(("loss", "prediction", "target", "options", "expected"), CASES.values(), ids=CASES)
def test_integers_and_booleans_are_their_values(loss, prediction, target, options, expected, kind):
    whole = np.round(3 * prediction).astype(kind)
    value = loss(whole, target, "none", **options)
    expected = loss(whole.astype(float), target, "none", **options)
    assert value.dtype == jnp.float64 and np.allclose(value, expected, equal_nan=True)  # probabilities above 1
    whole = np.abs(np.round(2 * np.asarray(target))).clip(max=2).astype(kind)
    value = loss(jnp.asarray(prediction), whole, **options)
    labels = np.ndim(target) == 1
    assert np.allclose(
        value, loss(jnp.asarray(prediction), whole.astype(int if labels else float), **options), equal_nan=True
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize(("loss", "prediction", "target", "options", "expected"), CASES.values(), ids=CASES)
def test_half_precision_is_rounded_at_the_end(loss, prediction, target, options, expected, half):
    rounded = jnp.asarray(prediction, half)
    for reduction in ("none", "mean", "sum"):
        value = loss(rounded, target, reduction, **options)
        right = loss(rounded.astype("float32"), target, reduction, **options)
        assert value.dtype == half and np.array_equal(value, right.astype(half)) and right.dtype == jnp.float32
    gradient = jax.grad(loss)(rounded, target, **options)
    right = jax.grad(loss)(rounded.astype("float32"), target, **options)
    assert gradient.dtype == half and np.allclose(
        gradient.astype("float32"), right, rtol=2 * float(jnp.finfo(half).eps)
    )


def test_long_sums_in_half_precision():
    ones = jnp.ones(3000, "float16")
    assert losses.mse(ones, 0 * ones, "sum") == 3000 and losses.mae(ones, 0 * ones) == 1
    assert losses.mse(300 * ones, 0 * ones) == np.inf and losses.mse(200 * ones, 0 * ones) == 40000
    assert losses.dice(jnp.ones((1, 3000), "bfloat16"), np.ones((1, 3000))) == 0


def test_labels_may_be_booleans_and_python_lists():
    logits = RNG.normal(size=(3, 2))
    expected = losses.cross_entropy(logits, np.array([1, 0, 1]))
    assert losses.cross_entropy(logits, np.array([True, False, True])) == expected
    assert losses.cross_entropy(logits.tolist(), [1, 0, 1]) == expected


def test_losses_keep_the_precision_of_the_prediction():
    for loss in (losses.mse, losses.cross_entropy, losses.binary_cross_entropy, losses.dice):
        assert loss(jnp.asarray(LOGITS, jnp.float32), SOFT).dtype == jnp.float32


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.kl_divergence, losses.focal])
def test_labels_out_of_range_are_refused_and_no_number_where_they_are_not_known(loss):
    logits, labels = jnp.asarray(LOGITS), np.array([0, 3, -1, 2])
    values = jax.jit(lambda labels: loss(logits, labels, "none"))(labels)
    assert np.isnan(values).tolist() == [False, True, True, False]
    for of in (loss, jax.grad(loss), jax.jit(lambda logits, _: loss(logits, labels))):
        with pytest.raises(ValueError, match=r"labels of 3 classes are 0 to 2, got 3 at \(1,\): .* `mask=target >= 0`"):
            of(logits, labels)
    counts = (labels >= 0) & (labels < 3)
    assert np.isclose(loss(logits, labels, mask=counts), loss(logits[counts], labels[counts]))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.kl_divergence, losses.focal])
def test_classes_that_are_ruled_out_count_as_nothing(loss):
    logits = jnp.array([[-jnp.inf, 0.0, 1.0]])
    value, slope = jax.value_and_grad(loss)(logits, jnp.array([1]))
    expected, of_others = jax.value_and_grad(loss)(logits[:, 1:], jnp.array([0]))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, np.pad(of_others, ((0, 0), (1, 0))), rtol=1e-12)
    assert loss(logits, jnp.array([0])) == jnp.inf


def test_squared_and_absolute_errors_of_complex_values_are_real():
    a, b = RNG.normal(size=(2, 5)) + 1j * RNG.normal(size=(2, 5))
    assert np.isclose(losses.mse(a, b), np.mean(np.abs(a - b) ** 2)) and losses.mse(a, b).dtype == jnp.float64
    assert np.isclose(losses.mae(a, b), np.mean(np.abs(a - b)))
    assert np.isclose(losses.mse(a.real, b), np.mean(np.abs(a.real - b) ** 2))  # nothing of the target is dropped
    gradient = jax.grad(losses.mse)(jnp.asarray(a), b)
    assert np.allclose(gradient, 2 * np.conj(a - b) / 5)
    assert np.array_equal(jax.grad(losses.mse)(jnp.asarray(a), a), np.zeros(5))
    for loss in (losses.huber, losses.hinge, losses.binary_cross_entropy, losses.dice):
        with pytest.raises(TypeError, match="takes real values"):
            loss(a.real, b)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"the target \(4,\): labels, .* are integers, `target\.astype\(int\)`"):
        losses.cross_entropy(np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(ValueError, match=r"the prediction has the shape \(4, 3\), the target \(3, 4\)"):
        losses.mse(P, Y.T)
    with pytest.raises(ValueError, match="reduction is 'mean', 'sum' or 'none', got 'max'"):
        losses.mse(P, Y, "max")
    with pytest.raises(ValueError, match="margin that is not negative, got -1"):
        losses.siamese_contrastive(P, Y, margin=-1)


@pytest.mark.slow
def test_a_loss_is_an_objective_of_a_model(key):
    model = lux.Chain(lux.Dense(3, 3), lux.BatchNorm(3))
    ps, st = lux.setup(key, model)
    objective = losses.Objective(losses.mse)
    assert pickle.loads(pickle.dumps(objective)) == objective and hash(objective) == hash(losses.Objective(losses.mse))
    (value, st_next), gradient = jax.value_and_grad(objective, 1, has_aux=True)(model, ps, st, (P, Y))
    y, expected = model(P, ps, st)
    assert np.isclose(value, np.mean((np.asarray(y) - Y) ** 2)) and gradient.layout is ps.layout
    assert np.allclose(st_next["layer_1"]["running_mean"], expected["layer_1"]["running_mean"])
