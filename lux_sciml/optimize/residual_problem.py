"""ResidualProblem: residuals of the parameters of a fit, as a whole or of one sample; their weights and Jacobian."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._tree import describe, is_inexact
from ..components import ComponentVector
from ..core.mode import modes
from .chunks import strong
from .fitted_parameters import FittedParameters, kind_of, text_of
from .levenberg_marquardt import Residuals, forward_jacobian, prefers_forward, reverse_jacobian
from .problem import as_jax, called, facts_of, parts_of_args
from .robust_losses import Robust

WHOLE = ""  # the name of the group where there is one


class Data(NamedTuple):
    """The arrays that residuals are given beside what a method varies."""

    args: Any = None
    fixed: ComponentVector | None = None  # all parameters, where some of them are fitted
    samples: Any = None  # of each group, with a leading axis
    weights: Any = None  # (m,), of the residuals in order; None where all are 1
    instead: Any = None  # of each group, which samples are evaluated, (count,): another one for each of weight zero

    @property
    def plain(self) -> "Data":
        """What the residual of one sample is given."""
        return self._replace(samples=None, weights=None, instead=None)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ResidualProblem(FittedParameters):
    """Residuals of parameters of one kind: of the whole, or of one sample of each of some groups."""

    function: Any  # the residual, or a dict of residuals by group
    groups: tuple[str, ...]
    has_samples: bool
    has_args: bool
    other_args: Any  # what in the args is neither array nor number
    loss: Robust
    jacobian: str | None = None  # "forward" or "reverse"
    trace: Any = None  # of the residuals, in place of them

    @classmethod
    def of(
        cls, residual: Any, ps: Any, samples: Any, args: Any, trainable: Any, loss: Robust, jacobian: str | None
    ) -> "tuple[ResidualProblem, Data]":
        """Raises `TypeError` and `ValueError` for what are no residuals, samples or parameters."""
        kind = kind_of("least_squares", ps, trainable, samples, args)
        by_name = isinstance(residual, Mapping)
        groups = tuple(residual) if by_name else (WHOLE,)
        for name in groups:
            function = residual[name] if by_name else residual
            if not callable(function):
                raise TypeError(
                    f"the residual{_of_group(name)} must be a function of the parameters, got {describe(function)}"
                )
        if samples is not None:
            samples = {name: _samples(name, x) for name, x in by_group("samples", samples, groups).items()}
        elif by_name:
            raise TypeError(
                "residuals by group are of one sample each: pass `samples=` with the same keys; without samples, let "
                "one residual return a dict of arrays"
            )
        arrays, others = parts_of_args(args)
        problem = cls(
            function=dict(residual) if by_name else residual,
            groups=groups,
            has_samples=samples is not None,
            has_args=args is not None,
            other_args=others,
            loss=loss,
            jacobian=jacobian,
            **kind,
        )
        return problem, Data(arrays, None if problem.part is None else ps, samples)

    def facts(self) -> tuple[Any, ...]:
        """All but the residuals: what a trace of them depends on."""
        return facts_of(self)

    def traced(self, trace: Callable, params: Any, data: Data) -> dict[str, Callable]:
        """The residual of each group, traced by a function of it and its arguments."""
        ones = {name: self._first(name, data) for name in self.groups}
        of = {name: functools.partial(self._returned, name) for name in self.groups}
        return {name: trace(of[name], params, data.plain, ones[name])[0] for name in self.groups}

    # --- residuals --------------------------------------------------------------------------------------------

    def one(self, name: str, params: Any, data: Data, sample: Any) -> jax.Array:
        """The residuals of one sample of a group, or without samples of all, `(k,)`, not weighted."""
        return ravel_pytree(self._returned(name, params, data, sample))[0]

    def _returned(self, name: str, params: Any, data: Data, sample: Any) -> Any:
        """What the user's function returns, checked to be floating-point arrays."""
        if self.trace is not None:
            return self.trace[name](params, data.plain, sample)
        given = [self.join(params, data)]
        given += [sample] if self.has_samples else []
        given += [eqx.combine(data.args, self.other_args)] if self.has_args else []
        names = [("ps", True), ("sample", self.has_samples), ("args", self.has_args)]
        function = self.function[name] if isinstance(self.function, dict) else self.function
        out = called(f"residual{_of_group(name)}", function, [name for name, has in names if has], *given)
        if _holds_state(out):
            raise TypeError(
                f"the residual{_of_group(name)} returned a state beside its numbers. A layer returns (y, st), of which "
                "only y is compared with data: y, _ = model(x, ps, st)"
            )
        leaves = jax.tree.leaves(out)
        if not all(isinstance(x, float) or (is_inexact(x) and not jnp.iscomplexobj(x)) for x in leaves):
            raise TypeError(
                f"the residual{_of_group(name)} must return real floating-point numbers, got {text_of(out)}; of "
                "complex ones, return the real and the imaginary parts"
            )
        if not leaves or sum(np.size(x) for x in leaves) == 0:
            raise ValueError(f"the residual{_of_group(name)} returned no numbers: there is nothing to fit")
        return jax.tree.map(jnp.asarray, out)

    def direction(self, k: int) -> str:
        """Of the Jacobian of k residuals; by itself reverse, unless one sample has many."""
        return self.jacobian or ("forward" if k > 1 and prefers_forward(k, self.layout.size) else "reverse")

    def returned(self, params: Any, data: Data) -> Any:
        """What the user's functions return, for all samples."""

        def of(name: str) -> Any:
            if not self.has_samples:
                return self._returned(name, params, data, None)
            return jax.vmap(lambda sample: self._returned(name, params, data, sample))(data.samples[name])

        found = jax.jit(lambda: {name: of(name) for name in self.groups})()
        return found[WHOLE] if self.groups == (WHOLE,) else {name: found[name] for name in self.groups}

    def shape_of(self, name: str, params: Any, data: Data) -> Any:
        """What the residual of a group returns, of one sample, without values."""
        return jax.eval_shape(functools.partial(self._returned, name), params, data, self._first(name, data))

    def sizes(self, params: Any, data: Data) -> dict[str, tuple[int, int]]:
        """For each group, how many samples there are, and how many residuals each has."""
        found = {}
        for name in self.groups:
            k = sum(x.size for x in jax.tree.leaves(self.shape_of(name, params, data)))
            found[name] = (number_of(data.samples[name]) if self.has_samples else 1, k)
        return found

    def _first(self, name: str, data: Data) -> Any:
        return jax.tree.map(lambda x: x[0], data.samples[name]) if self.has_samples else None

    def weighted(self, weights: Any, params: Any, data: Data) -> Data:
        """The data with weights. Raises `ValueError` for other shapes and what is negative or NaN."""
        if weights is None:
            return data
        given = by_group("weights", weights, self.groups, everywhere=True)
        count = {name: number_of(data.samples[name]) if self.has_samples else None for name in self.groups}
        rows = {
            name: _weights(_of_group(name), given[name], self.shape_of(name, params, data), count[name])
            for name in self.groups
        }
        data = data._replace(weights=jnp.asarray(np.concatenate(list(rows.values())), self.flat_dtype))
        if not self.has_samples or all(w.all() for w in rows.values()):
            return data
        return data._replace(
            instead={name: _instead(w.reshape(number_of(data.samples[name]), -1)) for name, w in rows.items()}
        )

    @property
    def flat_dtype(self) -> np.dtype:
        """In which steps are computed: at least float32."""
        return np.promote_types(self.dtype, np.float32) if self.dtype.itemsize >= 4 else np.dtype(np.float32)

    def at(self, data: Data) -> "Fit":
        """The residuals of these data, of a flat vector."""
        return Fit(self, data)

    def seen(self, flat: jax.Array, data: Data) -> tuple[jax.Array, jax.Array]:
        """The residuals, as a solver differentiates them, by rows; and the loss."""
        fit = self.at(data)

        @jax.custom_jvp
        def residuals(x):
            return fit.values(x)[0]

        @residuals.defjvp
        def by_rows(xs, tangents):
            r, jacobian, _ = fit.with_jacobian(*xs)
            return r, jacobian @ tangents[0]

        r = residuals(flat)
        return r, self.loss.value(jax.lax.stop_gradient(r))

    def seen_shape(self, flat: jax.Array, data: Data) -> tuple[int, ...]:
        return jax.eval_shape(self.at(data).values, flat)[0].shape

    def value_and_gradient(self, flat: jax.Array, data: Data) -> tuple[jax.Array, jax.Array]:
        r, jacobian, _ = self.at(data).with_jacobian(flat.astype(self.flat_dtype))
        return self.loss.value(r), r @ jacobian


class Fit(Residuals):
    """A ResidualProblem with its data, as residuals of a flat vector."""

    def __init__(self, problem: ResidualProblem, data: Data):
        self.problem, self.data, self.loss = problem, data, problem.loss

    def _group(self, name: str, x: jax.Array, sample: Any) -> tuple[jax.Array, None]:
        return self.problem.one(name, self.problem.unravel(x), self.data, sample).astype(x.dtype), None

    def values(self, x: jax.Array) -> tuple[jax.Array, None]:
        parts = []
        for name in self.problem.groups:
            if self.problem.has_samples:
                of_all = jax.vmap(lambda sample, name=name: self._group(name, x, sample)[0])
                parts.append(of_all(self._samples(name)).ravel())
            else:
                parts.append(self._group(name, x, None)[0])
        r = jnp.concatenate(parts)
        return self._weighted(r, self.data.weights), None

    def with_jacobian(self, x: jax.Array) -> tuple[jax.Array, jax.Array, None]:
        """Row by row of the samples: the derivative of one, under `vmap`."""
        parts = []
        for name in self.problem.groups:
            if self.problem.has_samples:
                of_all = jax.vmap(functools.partial(self._rows, name, x))
                r, rows = of_all(self._samples(name))
                parts.append((r.ravel(), rows.reshape(-1, x.size)))
            else:
                parts.append(self._rows(name, x, None))
        r, jacobian = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        w = self.data.weights
        return self._weighted(r, w), self._weighted(jacobian, None if w is None else w[:, None]), None

    def _samples(self, name: str) -> Any:
        """Without those of weight zero: these may be NaN, which zero times their derivatives would be too."""
        instead = self.data.instead
        samples = self.data.samples[name]
        return samples if instead is None else jax.tree.map(lambda x: x[instead[name]], samples)

    def _weighted(self, x: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Zero where the weight is, whatever stands there."""
        return x if weights is None else jnp.where(weights == 0, 0, weights * x)

    def _rows(self, name: str, x: jax.Array, sample: Any) -> tuple[jax.Array, jax.Array]:
        f = functools.partial(self._group, name, sample=sample)
        direction = self.problem.direction(jax.eval_shape(f, x)[0].size)
        r, rows, _ = (forward_jacobian if direction == "forward" else reverse_jacobian)(f, x)
        return r, rows


def _weights(of_group: str, weights: Any, like: Any, count: int | None) -> np.ndarray:
    """The weights `(m,)` of residuals of the form `like`, without samples or of each of so many."""
    if isinstance(weights, ComponentVector):
        if isinstance(like, ComponentVector):
            like.layout.require_same(weights.layout)
        weights = weights.data
    same = jax.tree.structure(weights) == jax.tree.structure(like)
    if isinstance(weights, Mapping) and not same:
        raise ValueError(
            f"weights{of_group} are a number, an array, or like the residuals, {describe(like)}, got "
            f"{describe(weights)}"
        )
    if same and not jax.tree_util.all_leaves([like]):
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(like), strict=True)
        return np.concatenate([_weights(of_group, *pair, count).reshape(count or 1, -1) for pair in pairs], 1).ravel()
    w = np.asarray(weights, np.float64)
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError(f"weights{of_group} multiply residuals and are finite and not negative")
    leaves, leading = jax.tree.leaves(like), () if count is None else (count,)
    k = sum(x.size for x in leaves)
    shapes = [(*leading, k), *([(*leading, *leaves[0].shape)] if len(leaves) == 1 else [])]
    if w.size == 1:
        w = w.reshape(1, 1)
    elif count is not None and _without_ones(w.shape) == leading:
        w = w.reshape(count, 1)
    elif _without_ones(w.shape) in map(_without_ones, shapes):
        w = w.reshape(count or 1, k)
    else:
        what = f"the shape {shapes[-1]} of the residuals" if count is None else f"({count},), one for each sample"
        raise ValueError(f"weights{of_group} are a number or have {what}, got shape {w.shape}")
    return np.broadcast_to(w, (count or 1, k)).ravel()


def _instead(weights: np.ndarray) -> jax.Array:
    """Which sample stands in the place of each one: another one where its weights `(count, k)` are zero."""
    counted = weights.any(1)
    return jnp.asarray(np.where(counted, np.arange(len(weights)), np.argmax(counted)), jnp.int32)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def by_group(what: str, given: Any, groups: tuple[str, ...], everywhere: bool = False) -> dict[str, Any]:
    """What is given for each group. Raises `ValueError`, naming the groups, where they do not match."""
    if groups == (WHOLE,):
        return {WHOLE: given}
    if everywhere and np.ndim(given) == 0 and not isinstance(given, Mapping):
        return dict.fromkeys(groups, given)
    if not isinstance(given, Mapping) or set(given) != set(groups):
        have = ", ".join(map(repr, given)) if isinstance(given, Mapping) else describe(given)
        raise ValueError(
            f"{what} are a dict with the groups of the residuals, {', '.join(map(repr, groups))}, got {have}"
        )
    return {name: given[name] for name in groups}


def number_of(samples: Any) -> int:
    """How many samples there are."""
    return jax.tree.leaves(samples)[0].shape[0]


def same_samples(name: str, new: Any, old: Any) -> Any:
    """New samples of a group, checked to be of the kind of the old ones."""
    new = _samples(name, new)
    if describe(new) != describe(old):
        raise ValueError(
            f"resample must return samples{_of_group(name)} of the same structure, shapes and dtypes, {describe(old)}, "
            f"got {describe(new)}"
        )
    return new


def not_finite(problem: ResidualProblem, params: Any, data: Data) -> str:
    """Which residual is not finite, by group and sample, as the end of a sentence."""
    x, first = jnp.asarray(problem.ravel(params), problem.flat_dtype), 0
    for name in problem.groups:
        if not problem.has_samples:
            r = _counted(np.asarray(problem.one(name, problem.unravel(x), data, None)), data, 0)
            wrong = np.flatnonzero(~np.isfinite(r))
            if wrong.size:
                return f" ({wrong.size} of {r.size} residuals are not finite, the first of them at index {wrong[0]})"
            continue
        one = functools.partial(problem.one, name, problem.unravel(x), data)
        r = _counted(np.asarray(jax.vmap(one)(data.samples[name])), data, first)
        first += r.size
        wrong = np.flatnonzero(~np.isfinite(r).all(1))
        if wrong.size:
            i = int(wrong[0])
            holds = [leaf[i] for leaf in jax.tree.leaves(data.samples[name]) if is_inexact(leaf)]
            itself = "" if all(np.isfinite(x).all() for x in holds) else ", which itself holds NaN or inf,"
            many = f"; {wrong.size} of {len(r)} are so" if wrong.size > 1 else ""
            return f" (the residual{_of_group(name)} of sample {i}{itself} is not finite{many})"
    return ""


def _counted(r: np.ndarray, data: Data, first: int) -> np.ndarray:
    """Residuals, the first of them at this position of all, with zero for those whose weight is zero."""
    return r if data.weights is None else np.where(data.weights[first : first + r.size].reshape(r.shape) == 0, 0, r)


def _samples(name: str, samples: Any) -> Any:
    """A pytree of arrays with the same leading axis."""
    samples = jax.tree.map(lambda x: as_jax(np.asarray(x) if isinstance(x, float | int | bool) else x), samples)
    leaves = jax.tree.leaves(samples)
    if not leaves or not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves):
        raise TypeError(f"samples{_of_group(name)} are a pytree of arrays with a leading axis, got {describe(samples)}")
    if len({x.shape[:1] for x in leaves}) != 1 or not leaves[0].shape:
        raise ValueError(f"samples{_of_group(name)} have one leading axis, of one length, got {describe(samples)}")
    if leaves[0].shape[0] == 0:
        raise ValueError(f"there are no samples{_of_group(name)}: {describe(samples)}")
    return strong(samples)


def _of_group(name: str) -> str:
    return f" of group {name!r}" if name != WHOLE else ""


def _holds_state(out: Any) -> bool:
    """Whether a function has returned what a layer does, an output and its state, an empty one too."""
    is_pair = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)
    return bool(modes(out)) or (is_pair and not jax.tree.leaves(out[1]))
