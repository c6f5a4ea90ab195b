"""Losses: functions `(prediction, target, reduction="mean")`, and a loss as the objective of a model.

`reduction` is `"mean"`, `"sum"` or `"none"`, over all that the loss itself does not sum over. Targets have the shape of
the prediction, otherwise `ValueError` says both shapes; `mse` and `mae` take complex ones too. A loss has the real
floating-point type of the prediction, the default one for integers and booleans; in half precision it is computed in
float32 and rounded at the end. A loss that Optax has is Optax's.

`mask`, of the shape of what the loss does not sum over, or of its first axes, is True for what counts. The mean is that
of what counts, zero where nothing does; the rest is never computed with, so that what stands there, NaN too, has a zero
gradient. The target may be a `lux.diffeq.Series`, which brings its mask: its padding does not count, nor do values that
are NaN.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _names
from ._tree import floating, is_inexact, is_traced, real_type, squared, widened
from .series import Series, counting, observed

__dir__ = _names.public(__name__)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as a function of a model: `value, st = objective(model, ps, st, (x, y))`.

    It is the loss of the model's output for `x` against `y`; `st` is the state after the call, so that
    `jax.value_and_grad(objective, argnums=1, has_aux=True)` passes it on. `loss` is a function `(prediction, target)`.
    Two objectives of one loss are equal.

    >>> import lux_sciml as lux
    >>> model = lux.Dense(2, 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> data = jnp.ones((8, 2)), jnp.zeros((8, 1))
    >>> gradient, st = jax.grad(lux.losses.Objective(lux.losses.mse), 1, has_aux=True)(model, ps, st, data)
    >>> gradient.weight.shape
    (2, 1)
    """

    loss: Callable[[Any, Any], Any]

    def __call__(self, model: Any, ps: Any, st: Any, data: tuple[Any, Any]) -> tuple[Any, Any]:
        x, y = data
        prediction, st = model(x, ps, st)
        return self.loss(prediction, y), st


# --- real values ----------------------------------------------------------------------------------------------------


def mse(prediction: Any, target: Any, reduction: str = "mean", *, mask: Any = None) -> jax.Array:
    """Squared error: `|prediction - target|^2`, of complex values too.

    >>> float(mse(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])))
    2.5
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask, takes_complex=True)
    return _reduced(squared(prediction - target), reduction, dtype, mask)


def mae(prediction: Any, target: Any, reduction: str = "mean", *, mask: Any = None) -> jax.Array:
    """Absolute error: `|prediction - target|`, of complex values too.

    >>> float(mae(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])))
    1.5
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask, takes_complex=True)
    return _reduced(jnp.abs(prediction - target), reduction, dtype, mask)


def huber(prediction: Any, target: Any, reduction: str = "mean", *, delta: float = 1.0, mask: Any = None) -> jax.Array:
    """Half the squared error up to `delta`, linear beyond: `delta * (|d| - delta / 2)`; `optax.losses.huber_loss`.

    Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35, 1964.

    >>> float(huber(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])))
    1.0
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    return _reduced(optax.losses.huber_loss(prediction, target, delta=delta), reduction, dtype, mask)


def msle(
    prediction: Any, target: Any, reduction: str = "mean", *, epsilon: float | None = None, mask: Any = None
) -> jax.Array:
    """Squared error of logarithms: `log((prediction + epsilon) / (target + epsilon))^2`, for positive values.

    `epsilon` is the machine epsilon by default, here and in the other losses.

    >>> float(msle(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])))
    0.0
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    epsilon = _epsilon(prediction, epsilon)
    return _reduced(jnp.square(jnp.log((prediction + epsilon) / (target + epsilon))), reduction, dtype, mask)


def poisson(
    prediction: Any, target: Any, reduction: str = "mean", *, epsilon: float | None = None, mask: Any = None
) -> jax.Array:
    """Negative log-likelihood of counts, up to a constant: `prediction - target * log(prediction + epsilon)`.

    >>> float(poisson(jnp.array([1.0]), jnp.array([0.0])))
    1.0
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    return _reduced(prediction - target * jnp.log(prediction + _epsilon(prediction, epsilon)), reduction, dtype, mask)


# --- classes --------------------------------------------------------------------------------------------------------


def cross_entropy(
    prediction: Any,
    target: Any,
    reduction: str = "mean",
    *,
    logits: bool = True,
    axis: int = -1,
    label_smoothing: float = 0.0,
    epsilon: float | None = None,
    mask: Any = None,
) -> jax.Array:
    r"""Cross-entropy of classes: :math:`-\sum_k y_k \log \hat y_k`, summed over the classes along `axis`.

    * `prediction`: logits or, with `logits=False`, probabilities, to which `epsilon` is added. A logit of minus
      infinity rules a class out, and counts as nothing where the target is zero.
    * `target`: probabilities, or labels, integers from 0 without the axis of classes. A label out of range raises
      `ValueError`; where its value is not known, as those of arguments of `jax.jit` are not, the loss is NaN.
    * `reduction`: `"mean"`, `"sum"` or `"none"`, over all other axes.
    * `axis`: that of the classes.
    * `label_smoothing`: the fraction of the target that is moved to a uniform distribution.

    It is `optax.losses.softmax_cross_entropy`, but for classes that are ruled out.

    >>> float(cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1])) / jnp.log(2.0))
    1.0
    """
    prediction, target, mask, dtype = _classes(prediction, target, mask, axis, label_smoothing)
    log_prediction = _log_probabilities(prediction, target, logits, axis, epsilon)
    return _reduced(-jnp.sum(target * log_prediction, axis), reduction, dtype, mask)


def kl_divergence(
    prediction: Any,
    target: Any,
    reduction: str = "mean",
    *,
    logits: bool = True,
    axis: int = -1,
    label_smoothing: float = 0.0,
    epsilon: float | None = None,
    mask: Any = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of the prediction from the target: :math:`\sum_k y_k (\log y_k - \log \hat y_k)`.

    * `prediction`, `target`, `reduction`, `logits`, `axis`, `label_smoothing`, `epsilon`: as in `cross_entropy`.

    It is `optax.losses.kl_divergence`.

    >>> float(kl_divergence(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]])))
    0.0
    """
    prediction, target, mask, dtype = _classes(prediction, target, mask, axis, label_smoothing)
    log_prediction = _log_probabilities(prediction, target, logits, axis, epsilon)
    return _reduced(optax.losses.kl_divergence(log_prediction, target, axis), reduction, dtype, mask)


def focal(
    prediction: Any,
    target: Any,
    reduction: str = "mean",
    *,
    gamma: float = 2.0,
    logits: bool = True,
    axis: int = -1,
    epsilon: float | None = None,
    mask: Any = None,
) -> jax.Array:
    r"""Cross-entropy with less weight on what is predicted well.

    .. math:: -\sum_k y_k (1 - \hat y_k)^\gamma \log \hat y_k

    * `gamma`: how much less; with zero it is `cross_entropy`.
    * `prediction`, `target`, `reduction`, `logits`, `axis`, `epsilon`: as in `cross_entropy`.

    Lin et al., "Focal loss for dense object detection", ICCV 2017.

    >>> float(focal(jnp.zeros((1, 2)), jnp.array([1])) / jnp.log(2.0))
    0.25
    """
    prediction, target, mask, dtype = _classes(prediction, target, mask, axis)
    log_prediction = _log_probabilities(prediction, target, logits, axis, epsilon)
    weight = _power(-jnp.expm1(log_prediction), gamma)
    return _reduced(-jnp.sum(target * weight * log_prediction, axis), reduction, dtype, mask)


# --- two classes ----------------------------------------------------------------------------------------------------


def binary_cross_entropy(
    prediction: Any,
    target: Any,
    reduction: str = "mean",
    *,
    logits: bool = True,
    label_smoothing: float = 0.0,
    epsilon: float | None = None,
    mask: Any = None,
) -> jax.Array:
    r"""Cross-entropy of two classes: :math:`-y \log \hat y - (1 - y) \log(1 - \hat y)`.

    * `prediction`: logits or, with `logits=False`, probabilities, to which `epsilon` is added.
    * `target`: probabilities of the class 1, or one value for all.
    * `reduction`: `"mean"`, `"sum"` or `"none"`.
    * `label_smoothing`: the fraction of the way to 1/2 that the target is moved.

    It is `optax.losses.sigmoid_binary_cross_entropy`.

    >>> float(binary_cross_entropy(jnp.zeros(3), jnp.array([0.0, 1.0, 1.0])) / jnp.log(2.0))
    1.0
    """
    if not isinstance(target, Series) and jnp.ndim(target) == 0:
        target = jnp.broadcast_to(target, jnp.shape(prediction))
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    return _reduced(_binary_cross_entropy(prediction, target, logits, epsilon), reduction, dtype, mask)


def binary_focal(
    prediction: Any,
    target: Any,
    reduction: str = "mean",
    *,
    gamma: float = 2.0,
    logits: bool = True,
    epsilon: float | None = None,
    mask: Any = None,
) -> jax.Array:
    r"""Binary cross-entropy times :math:`(1 - p)^\gamma`, where :math:`p = y \hat y + (1 - y)(1 - \hat y)`.

    * `gamma`: how much less weight there is on what is predicted well; with zero it is `binary_cross_entropy`.
    * `prediction`, `target`, `reduction`, `logits`, `epsilon`: as in `binary_cross_entropy`.

    See `focal`. Of logits it is `optax.losses.sigmoid_focal_loss`.

    >>> float(binary_focal(jnp.zeros(3), jnp.array([0.0, 1.0, 1.0])) / jnp.log(2.0))
    0.25
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    if logits:
        return _reduced(optax.losses.sigmoid_focal_loss(prediction, target, gamma=gamma), reduction, dtype, mask)
    short = target * (1 - prediction) + (1 - target) * prediction
    values = _power(short, gamma) * _binary_cross_entropy(prediction, target, logits, epsilon)
    return _reduced(values, reduction, dtype, mask)


def hinge(prediction: Any, target: Any, reduction: str = "mean", *, mask: Any = None) -> jax.Array:
    """`max(0, 1 - prediction * target)` for targets -1 and 1; `optax.losses.hinge_loss`.

    >>> float(hinge(jnp.array([0.5, 2.0]), jnp.array([1.0, 1.0])))
    0.25
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    return _reduced(optax.losses.hinge_loss(prediction, target), reduction, dtype, mask)


def squared_hinge(prediction: Any, target: Any, reduction: str = "mean", *, mask: Any = None) -> jax.Array:
    """`max(0, 1 - prediction * target)^2` for targets -1 and 1.

    >>> float(squared_hinge(jnp.array([0.5, 2.0]), jnp.array([1.0, 1.0])))
    0.125
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    return _reduced(jnp.square(optax.losses.hinge_loss(prediction, target)), reduction, dtype, mask)


# --- sets and pairs -------------------------------------------------------------------------------------------------


def dice(prediction: Any, target: Any, reduction: str = "mean", *, smooth: float = 1.0, mask: Any = None) -> jax.Array:
    r"""Dice loss of each sample: :math:`1 - (2 \sum y \hat y + s) / (\sum y^2 + \sum \hat y^2 + s)`.

    The sums are over all axes but the first; `smooth` is s. A sample of which nothing counts does not count.

    Milletari, Navab and Ahmadi, "V-Net", 3DV 2016.

    >>> float(dice(jnp.ones((1, 4)), jnp.ones((1, 4))))
    0.0
    """
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    axes = tuple(range(1, prediction.ndim))
    overlap = 2 * jnp.sum(prediction * target, axes) + smooth
    squares = jnp.sum(jnp.square(prediction) + jnp.square(target), axes) + smooth
    return _reduced(1 - overlap / squares, reduction, dtype, None if mask is None else jnp.any(mask, axes))


def siamese_contrastive(
    prediction: Any, target: Any, reduction: str = "mean", *, margin: float = 1.0, mask: Any = None
) -> jax.Array:
    r"""Contrastive loss of distances: :math:`(1 - y) d^2 + y \max(0, m - d)^2`, with y = 1 for pairs that differ.

    `prediction` holds the distances d of pairs; `margin` is m. Raises `ValueError` for a negative margin.

    Hadsell, Chopra and LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006.

    >>> float(siamese_contrastive(jnp.array([0.5, 0.5]), jnp.array([0.0, 1.0])))
    0.25
    """
    if margin < 0:
        raise ValueError(f"siamese_contrastive needs a margin that is not negative, got {margin}")
    prediction, target, mask, dtype = _alike(prediction, target, mask)
    far = jnp.square(jnp.maximum(0, margin - prediction))
    return _reduced((1 - target) * jnp.square(prediction) + target * far, reduction, dtype, mask)


# --- helpers --------------------------------------------------------------------------------------------------------


def _reduced(values: jax.Array, reduction: str, dtype: Any, mask: Any = None) -> jax.Array:
    reductions = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda values: values}
    if reduction not in reductions:
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")
    if mask is not None:
        values = jnp.where(mask, values, 0)
        if reduction == "mean":
            return (jnp.sum(values) / jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)).astype(dtype)
    return reductions[reduction](values).astype(dtype)


def _alike(
    prediction: Any, target: Any, mask: Any, *, takes_complex: bool = False
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Prediction and target in one floating-point type, float32 at least, the mask, and the real type of the loss.

    What does not count is zero.
    """
    target, mask = observed(target, mask)
    if jnp.shape(prediction) != jnp.shape(target):
        raise ValueError(f"the prediction has the shape {jnp.shape(prediction)}, the target {jnp.shape(target)}")
    if mask is not None:
        mask = counting(mask, prediction)
        prediction, target = _counted(mask, prediction), _counted(mask, target)
    prediction = floating(jnp.asarray(prediction))
    wide = widened(prediction)
    if jnp.iscomplexobj(prediction) or jnp.iscomplexobj(target):
        if not takes_complex:
            raise TypeError("this loss takes real values, and these are complex: for such there are mse and mae")
        wide = wide if jnp.iscomplexobj(wide) else jax.lax.complex(wide, jnp.zeros_like(wide))
    return wide, jnp.asarray(target, wide.dtype), mask, real_type(prediction)


def _counted(mask: jax.Array, x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _epsilon(prediction: jax.Array, epsilon: float | None) -> float:
    return float(jnp.finfo(prediction.dtype).eps) if epsilon is None else epsilon


def _classes(
    prediction: Any, target: Any, mask: Any, axis: int, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """As `_alike`, the mask without the axis of classes; labels become rows of zeros and a one; smoothed targets."""
    given, seen = observed(target)
    prediction, target = jnp.asarray(prediction), jnp.asarray(given)
    count = prediction.shape[axis]
    if target.ndim == prediction.ndim - 1 and is_inexact(target):
        raise ValueError(
            f"the prediction has the shape {prediction.shape}, the target {target.shape}: labels, without the axis of "
            "classes, are integers, `target.astype(int)`"
        )
    one_of_each = jnp.take(prediction, 0, axis)
    mask = None if mask is None else counting(mask, one_of_each)
    if seen is not None and seen.shape == prediction.shape:
        mask = jnp.all(seen, axis) if mask is None else mask & jnp.all(seen, axis)
    if target.ndim == prediction.ndim - 1:
        _require_labels(given, count, mask)
        target = target.astype(int)
        known = jnp.expand_dims((target >= 0) & (target < count), axis)
        one_hot = jax.nn.one_hot(target, count, dtype=widened(prediction).dtype, axis=axis)
        target = jnp.where(known, one_hot, jnp.nan)
    of_all = None if mask is None else jnp.broadcast_to(jnp.expand_dims(mask, axis), prediction.shape)
    wide, target, _, dtype = _alike(prediction, target, of_all)
    target = target * (1 - label_smoothing) + label_smoothing / count if label_smoothing else target
    return wide, target, mask, dtype


def _require_labels(labels: Any, count: int, mask: Any) -> None:
    """Raise `ValueError` for labels out of range that count, where they are known."""
    if any(is_traced(x) or not getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves((labels, mask))):
        return
    labels, counts = np.asarray(labels), True if mask is None else np.asarray(mask)
    wrong = np.argwhere(((labels < 0) | (labels >= count)) & counts)
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"labels of {count} classes are 0 to {count - 1}, got {labels[place]} at {place}: of labels that begin at "
            "1 subtract one; what has no label is left out by a mask, `mask=target >= 0`"
        )


def _log_probabilities(prediction: Any, target: Any, logits: bool, axis: int, epsilon: float | None) -> jax.Array:
    """The logarithms; zero, not minus infinity, where the target is zero too: their product is zero."""
    if not logits:
        return jnp.log(prediction + _epsilon(prediction, epsilon))
    logs = jax.nn.log_softmax(prediction, axis)
    return jnp.where((target == 0) & jnp.isneginf(logs), 0, logs)


def _binary_cross_entropy(prediction, target, logits, epsilon):
    if logits:
        return optax.losses.sigmoid_binary_cross_entropy(prediction, target)
    epsilon = _epsilon(prediction, epsilon)
    return -target * jnp.log(prediction + epsilon) - (1 - target) * jnp.log(1 - prediction + epsilon)


def _power(x, exponent):
    """x^exponent for x in [0, 1], with a finite gradient at zero."""
    positive = x > 0
    power = jnp.where(positive, x, 1) ** exponent
    return jnp.where(positive, power, 1.0 if exponent == 0 else 0.0)
