"""Log-signatures against iterated integrals and Chen's identity; log-ODEs of a linear equation against its solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import lux_sciml as lux

RNG = np.random.default_rng(0)
TS = np.linspace(0.0, 1.0, 13)
XS = np.stack([np.sin(9 * TS), np.cos(7 * TS) + TS], -1)
MATRICES = 0.2 * RNG.normal(size=(3, 2, 2))  # of time and of two channels


def test_log_signatures_are_iterated_integrals_and_obey_chen():
    xs = RNG.normal(size=(7, 3))
    steps = np.diff(xs, axis=0)
    second = sum(np.outer(xs[k] - xs[0], d) + np.outer(d, d) / 2 for k, d in enumerate(steps))
    increment, area = xs[-1] - xs[0], (second - second.T) / 2
    expected = [*increment, area[0, 1], area[0, 2], area[1, 2]]
    found = jax.jit(lux.diffeq.logsignature)(np.stack([xs, 2 * xs], 1))
    np.testing.assert_allclose(found, [expected, [*(2 * increment), *(4 * np.array(expected[3:]))]], atol=1e-13)
    a, b = (np.asarray(lux.diffeq.logsignature(part)) for part in (xs[:4], xs[3:]))
    bracket = np.outer(a[:3], b[:3]) - np.outer(b[:3], a[:3])
    joined = [*(a[:3] + b[:3]), *(a[3:] + b[3:] + bracket[[0, 0, 1], [1, 2, 2]] / 2)]
    np.testing.assert_allclose(found[0], joined, atol=1e-13)
    turn = 2 * np.pi * np.arange(201) / 200
    circle = lux.diffeq.logsignature(np.stack([np.cos(turn), np.sin(turn)], -1))
    np.testing.assert_allclose(circle, [0, 0, 100 * np.sin(2 * np.pi / 200)], atol=1e-13)  # the polygon's area
    np.testing.assert_allclose(lux.diffeq.logsignature(xs, 1), increment, atol=1e-13)
    with pytest.raises(ValueError, match="depth 1 or 2, got 3"):
        lux.diffeq.logsignature(xs, 3)


class Linear(lux.Layer):
    """The fields `A_i y`, and for depth 2 those of their brackets."""

    depth: int

    def forward(self, y, ps, st):
        a = MATRICES
        if self.depth == 2:
            a = np.concatenate([a, [a[j] @ a[i] - a[i] @ a[j] for i, j in ((0, 1), (0, 2), (1, 2))]])
        return jnp.einsum("cij,...j->...ic", jnp.asarray(a), y), st


def solved(window, depth, xs=XS, ts=TS, **options):
    layer = lux.NeuralCDE(Linear(depth), lambda x: x[..., 1:], window=window, depth=depth,
                          **{"interpolation": "linear", "rtol": 1e-10, "atol": 1e-12, **options})  # fmt: skip
    sol, _ = jax.jit(layer)((ts, xs), *lux.setup(jax.random.key(0), layer))
    return sol.ys


@pytest.mark.exhaustive
def test_the_log_ode_of_a_linear_equation_approaches_its_solution():
    steps = np.diff(np.column_stack([TS, XS]), axis=0)
    y = XS[0]
    for d in steps:
        y = expm(np.einsum("c,cij->ij", d, MATRICES)) @ y
    np.testing.assert_allclose(solved(1, 2)[-1], y, rtol=1e-8)  # a line has no areas
    errors = {(w, depth): np.linalg.norm(solved(w, depth)[-1] - y) for w, depth in ((4, 1), (4, 2), (2, 2))}
    assert errors[4, 2] < errors[4, 1] / 5
    assert errors[2, 2] < errors[4, 2] / 2
    one = expm(np.einsum("c,cij->ij", np.asarray(lux.diffeq.logsignature(np.column_stack([TS[:6], XS[:6]]))),
                         np.concatenate([MATRICES, [MATRICES[j] @ MATRICES[i] - MATRICES[i] @ MATRICES[j]
                                                    for i, j in ((0, 1), (0, 2), (1, 2))]]))) @ XS[0]  # fmt: skip
    np.testing.assert_allclose(solved(5, 2)[5], one, rtol=1e-8)  # one exponential a window; the last one is shorter


@pytest.mark.exhaustive
def test_batches_series_and_what_is_refused():
    gaps = XS.copy()
    gaps[3, 0] = np.nan
    series = np.stack([XS, gaps])
    joint = solved(4, 2, series)
    separate = solved(4, 2, series, np.stack([TS, TS]), batching="vmap")
    np.testing.assert_allclose(joint, np.swapaxes(separate, 0, 1), rtol=1e-7)
    stairs = solved(3, 2, interpolation="rectilinear")
    assert stairs.shape == (13, 2) and np.all(np.isfinite(stairs))
    padded = solved(4, 2, np.concatenate([series, np.full((2, 2, 2), np.nan)], 1),
                    np.pad(np.stack([TS, TS]), ((0, 0), (0, 2)), mode="edge"), batching="vmap")  # fmt: skip
    np.testing.assert_allclose(padded[:, :13], separate, rtol=1e-7)
    for options, says in (
        ({}, "interpolation='linear'"),
        ({"window": None, "depth": 1}, "with a window"),
        ({"depth": 3}, "got 3"),
    ):
        with pytest.raises(ValueError, match=says):
            lux.NeuralCDE(Linear(2), lambda x: x, **{"window": 4, **options})
