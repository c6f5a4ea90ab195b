"""Which derivative goes with which adjoint: each pairing is exact, or one sentence.

The equation y' = a b y, y(0) = 4, with a = 2, b = 3 has y(t) = 4 exp(6 t); derivatives of y(1/2) are known.
"""

import functools
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

A, B, T = 2.0, 3.0, 0.5
Y = 4 * np.exp(A * B * T)
GRADIENT = Y * T * np.array([B, A])
HESSIAN = Y * np.array([[(T * B) ** 2, T + T**2 * A * B], [T + T**2 * A * B, (T * A) ** 2]])
PS = {"a": A, "b": B}


class Growth(lux.Layer):
    def init_params(self, key):
        return {"a": jnp.ones(()), "b": jnp.ones(())}

    def forward(self, y, ps, st):
        return ps["a"] * ps["b"] * y, st


def final(adjoint, output="final", max_steps=64):
    """y(1/2) as a function of the parameters."""
    node = lux.NeuralODE(
        Growth(),
        ts=[0.0, T],
        output=output,
        adjoint=adjoint,
        stepsize_controller=diffrax.ConstantStepSize(),
        dt0=T / 60,
        max_steps=max_steps,
    )
    return lambda ps: node(jnp.array(4.0), ps, {})[0].reshape(-1)[-1]


USES = {
    "grad": (lambda f, ps: jax.grad(f)(ps).data, GRADIENT),
    "reverse": (lambda f, ps: lux.jacobian(f, mode="reverse")(ps).data, GRADIENT),
    "forward": (lambda f, ps: lux.jacobian(f, mode="forward")(ps).data, GRADIENT),
    "hessian": (lambda f, ps: lux.hessian(f)(ps).data, HESSIAN),
}
WORKS = {
    "auto": ("grad", "reverse", "forward", "hessian"),
    "checkpointed": ("grad", "reverse", "hessian"),
    "direct": ("grad", "reverse", "forward", "hessian"),
    "backsolve": ("grad", "reverse"),
    "gauss": ("grad", "reverse"),
    "forward": ("forward",),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(("adjoint", "use"), [(adjoint, use) for adjoint, uses in WORKS.items() for use in uses])
def test_pairings_that_work_are_exact(adjoint, use):
    derivative, exact = USES[use]
    got = np.asarray(derivative(final(adjoint), lux.ComponentVector(PS)))
    np.testing.assert_allclose(got.reshape(exact.shape), exact, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adjoint", "use"),
    [
        ("checkpointed", "forward"),
        ("backsolve", "forward"),
        ("backsolve", "hessian"),
        ("gauss", "forward"),
        ("gauss", "hessian"),
        ("forward", "reverse"),
        ("forward", "hessian"),
    ],
)
def test_other_pairings_are_one_sentence(adjoint, use):
    with pytest.raises(TypeError, match="adjoint='auto'") as refused:
        USES[use][0](final(adjoint, "ys"), lux.ComponentVector(PS))
    assert "max_steps" not in str(refused.value)  # which were given


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adjoint", "use", "sentence"),
    [
        ("checkpointed", "forward", "or give adjoint='direct', and max_steps"),
        ("direct", "grad", "give adjoint='auto', or max_steps"),
        ("forward", "grad", "give adjoint='auto'(?!,)"),
    ],
)
def test_other_pairings_without_a_bound_on_the_steps(adjoint, use, sentence):
    with pytest.raises(TypeError, match=sentence):
        USES[use][0](final(adjoint, max_steps=None), lux.ComponentVector(PS))


@pytest.mark.slow
def test_hessian_of_saved_values_by_the_checkpointed_adjoint():
    got = lux.hessian(final("checkpointed", "ys"))(lux.ComponentVector(PS)).data
    np.testing.assert_allclose(got, HESSIAN, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", ["checkpointed", "direct", "backsolve", "gauss"])
def test_single_precision_stays_single_where_double_is_the_default(adjoint):
    node = lux.NeuralODE(NET, ts=[0.0, 1.0], adjoint=adjoint, output="final", max_steps=64)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float32)
    gradient = jax.grad(lambda ps: jnp.sum(node(jnp.asarray(Y0, jnp.float32), ps, st)[0]))
    single, double = gradient(ps), jax.grad(lambda ps: jnp.sum(node(jnp.asarray(Y0), ps, st)[0]))(ps.astype(float))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single.data, double.data, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_derivative_by_the_final_time():
    node = lux.NeuralODE(Growth(), output="final", max_steps=64, rtol=1e-9, atol=1e-9)
    ps = lux.ComponentVector(PS)
    slope = jax.grad(lambda t1: node((jnp.array(4.0), jnp.stack([jnp.zeros(()), t1])), ps, {})[0])(jnp.array(T))
    np.testing.assert_allclose(slope, A * B * Y, rtol=1e-6)


def test_objects_of_diffrax_are_taken_as_they_are():
    adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints=4)
    assert lux.NeuralODE(Growth(), adjoint=adjoint).chosen_adjoint() is adjoint
    assert lux.NeuralODE(Growth(), max_steps=None).chosen_adjoint().checkpoints == 64


NET = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
Y0 = np.array([[1.0, -0.5], [0.3, 0.7], [-1.2, 0.4]])


# --- every adjoint against the discrete one and finite differences -----------------------------------------------


class Rates(lux.Layer):
    """`f(t, y, p)` with the parameters `p`."""

    f: Callable

    def init_params(self, key):
        return {"p": jnp.ones(2)}

    def forward(self, x, ps, st):
        return self.f(*x, ps["p"]), st


def oscillating(t, y, p):
    return jnp.stack([y[1], -100 * p[0] * y[0] + p[1] * jnp.sin(30 * t)])


def stiff(t, y, p):
    return jnp.stack([-1e4 * p[0] * (y[0] - jnp.cos(3 * p[1] * t)), y[0] * y[1]])


def discontinuous(t, y, p):
    return jnp.where(t < 0.37, p[0], -2 * p[1]) * y + jnp.where(t > 0.52, p[1], 0.0)


def long(t, y, p):
    return jnp.stack([y[1], -p[0] * jnp.sin(y[0]) - 0.02 * p[1] * y[1]])


def jumps():
    return {"stepsize_controller": diffrax.PIDController(1e-8, 1e-10, jump_ts=[0.37, 0.52])}


PROBLEMS = {
    "oscillating": (oscillating, [0.0, 0.7, 1.5], dict),
    "stiff": (stiff, [0.0, 0.4, 1.0], lambda: {"solver": diffrax.Kvaerno5()}),
    "discontinuous": (discontinuous, [0.0, 0.3, 0.45, 1.0], jumps),
    "discontinuous, backward": (discontinuous, [1.0, 0.45, 0.0], jumps),
    "long": (long, [0.0, 20.0, 60.0], dict),
    "steps to given times": (
        oscillating,
        [0.0, 0.13, 1.0],
        lambda: {"stepsize_controller": diffrax.StepTo(np.linspace(0, 1, 101) ** 1.5)},
    ),
    "fixed steps": (
        long,
        [2.0, 1.3, 0.0],
        lambda: {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.02},
    ),
}
IN_ALL_WAYS = ("oscillating", "stiff", "discontinuous", "long")
X = np.array([1.0, 0.8, 0.5, 0.9])  # parameters and initial value


@functools.cache
def gradient(problem, adjoint):
    """Of the sum of the squares of the saved values, by parameters and initial value.

    By an adjoint, or by differences of values, without any derivative.
    """
    f, ts, options = PROBLEMS[problem]
    options = options()
    if "stepsize_controller" not in options:
        options = {"rtol": 1e-8, "atol": 1e-10, **options}
    options |= {"time_dependent": True, "output": "ys", "max_steps": 1024}
    node = lux.NeuralODE(Rates(f), ts=ts, adjoint="auto" if adjoint == "differences" else adjoint, **options)

    def loss(x):
        return jnp.sum(node(x[2:], {"p": x[:2]}, {})[0][1:] ** 2)

    if adjoint == "differences":
        loss, h = jax.jit(loss), 1e-4
        steps = h * np.eye(4)
        return np.array([8 * (loss(X + s) - loss(X - s)) - loss(X + 2 * s) + loss(X - 2 * s) for s in steps]) / (12 * h)
    return np.asarray(jax.jit(jax.jacfwd(loss) if adjoint == "forward" else jax.grad(loss))(jnp.asarray(X)))


ALL_WAYS, CONTINUOUS = ("differences", "direct", "forward", "gauss", "backsolve"), ("gauss", "backsolve")
PAIRS = [
    (problem, adjoint)
    for problem in PROBLEMS
    for adjoint in (ALL_WAYS if problem in IN_ALL_WAYS else CONTINUOUS)
    if (problem, adjoint) != ("stiff", "backsolve")  # which is not for these
] + [("discontinuous", "auto"), ("fixed steps", "auto")]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("problem", "adjoint"), PAIRS)
def test_every_adjoint_has_the_discrete_gradient(problem, adjoint):
    exact = gradient(problem, "checkpointed")
    rtol = 3e-5 if (problem, adjoint) == ("stiff", "differences") else 1e-6  # the noise of the steps, by 1e-4
    np.testing.assert_allclose(gradient(problem, adjoint), exact, rtol=rtol, atol=rtol * np.abs(exact).max())


def test_the_backsolve_adjoint_refuses_what_has_parts():
    split = lux.SplitODE(lux.Dense(2, 2), lux.Dense(2, 2), ts=[0.0, 1.0], output="final", adjoint="backsolve")
    ps, st = lux.setup(jax.random.key(0), split)
    with pytest.raises(ValueError, match="takes the equation as a whole, and KenCarp4 wants its parts"):
        jax.grad(lambda ps: jnp.sum(split(jnp.ones(2), ps, st)[0]))(ps)
