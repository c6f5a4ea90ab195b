"""Three of diffrax's published examples in ours, with the same numbers.

Neural ODE, coupled ODEs (Lotka-Volterra) and stiff ODE (Robertson) of https://docs.kidger.site/diffrax/examples, small.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

KEY = jax.random.key(5678)


class Func(eqx.Module):
    """The vector field of the neural ODE."""

    out_scale: jax.Array
    mlp: eqx.nn.MLP

    def __init__(self, data_size, width_size, depth, *, key):
        self.out_scale = jnp.array(1.0)
        self.mlp = eqx.nn.MLP(
            data_size, data_size, width_size, depth,
            activation=jax.nn.softplus, final_activation=jnp.tanh, key=key,
        )  # fmt: skip

    def __call__(self, t, y, args):
        return self.out_scale * self.mlp(y)


@pytest.mark.exhaustive
def test_neural_ode():
    func, ts, y0 = Func(2, 8, 2, key=KEY), jnp.linspace(0.0, 1.0, 6), jnp.array([0.5, -0.3])
    target = jnp.ones((6, 2))

    @eqx.filter_value_and_grad
    def theirs(func):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(func), diffrax.Tsit5(), t0=ts[0], t1=ts[-1], dt0=ts[1] - ts[0], y0=y0,
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6), saveat=diffrax.SaveAt(ts=ts),
        )  # fmt: skip
        return jnp.mean((target - solution.ys) ** 2)

    node = lux.NeuralODE(
        lux.as_field(func), ts, time_dependent=True, output="ys", dt0=0.2,
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
    )  # fmt: skip
    ps, st = lux.setup(KEY, node)
    assert ps["mlp.layers.0.weight"].shape == (8, 2) and ps.out_scale == 1.0
    loss, gradient = jax.value_and_grad(lambda ps: jnp.mean((target - node(y0, ps, st)[0]) ** 2))(ps)
    expected, expected_gradient = theirs(func)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)
    np.testing.assert_allclose(gradient["mlp.layers.1.weight"], expected_gradient.mlp.layers[1].weight, rtol=1e-7)
    np.testing.assert_allclose(gradient["out_scale"], expected_gradient.out_scale, rtol=1e-7)


def vector_field(t, y, args):
    prey, predator = y
    α, β, γ, δ = args
    d_prey = α * prey - β * prey * predator
    d_predator = -γ * predator + δ * prey * predator
    return d_prey, d_predator


@pytest.mark.slow
def test_coupled_odes():
    args, y0 = (0.1, 0.02, 0.4, 0.02), (jnp.array(10.0), jnp.array(10.0))
    options = {"dt0": 0.1, "saveat": diffrax.SaveAt(ts=jnp.linspace(0, 20, 11))}
    expected = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field), diffrax.Tsit5(), t0=0, t1=20, y0=y0, args=args,
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6), **options,
    )  # fmt: skip
    field = lux.as_field(vector_field, args, names=("alpha", "beta", "gamma", "delta"))
    node = lux.NeuralODE(
        field, jnp.linspace(0, 20, 11), time_dependent=True, dt0=0.1,
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
    )  # fmt: skip
    ps, st = lux.setup(KEY, node)
    assert ps.gamma == 0.4 and ps.size == 4
    sol, _ = node(y0, ps, st)
    np.testing.assert_allclose(sol.ys, expected.ys, rtol=1e-10)


class Robertson(eqx.Module):
    k1: float
    k2: float
    k3: float

    def __call__(self, t, y, args):
        f0 = -self.k1 * y[0] + self.k3 * y[1] * y[2]
        f1 = self.k1 * y[0] - self.k2 * y[1] ** 2 - self.k3 * y[1] * y[2]
        f2 = self.k2 * y[1] ** 2
        return jnp.stack([f0, f1, f2])


@pytest.mark.slow
def test_stiff_ode():
    ts, y0 = jnp.array([0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2]), jnp.array([1.0, 0.0, 0.0])
    controller = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    solver = diffrax.Kvaerno5(root_finder=diffrax.VeryChord(rtol=1e-8, atol=1e-8))  # diffrax's own; ours is another
    expected = diffrax.diffeqsolve(
        diffrax.ODETerm(Robertson(0.04, 3e7, 1e4)), solver, t0=0.0, t1=100.0, dt0=0.0002, y0=y0,
        saveat=diffrax.SaveAt(ts=ts), stepsize_controller=controller, max_steps=4096,
    )  # fmt: skip
    field = lux.as_field(lambda t, y, args: Robertson(**args)(t, y, None), {"k1": 0.04, "k2": 3e7, "k3": 1e4})
    node = lux.NeuralODE(field, ts, time_dependent=True, solver=solver, stepsize_controller=controller, dt0=0.0002)
    ps, st = lux.setup(KEY, node)
    assert list(ps.keys()) == ["k1", "k2", "k3"]
    sol = lux.raise_if_failed(node(y0, ps, st)[0])
    np.testing.assert_allclose(sol.ys, expected.ys, rtol=1e-10)


@pytest.mark.slow
def test_what_is_kept_and_what_does_not_fit():
    mixed = {"rate": 0.5, "order": 2, "scale": jnp.ones(2), "rule": jnp.tanh, "table": jnp.arange(2)}
    field = lux.as_field(lambda t, y, a: a["rule"](y * a["scale"]) ** a["order"] * a["rate"] + y[a["table"]], mixed)
    ps, st = lux.setup(KEY, field)
    assert list(ps.keys()) == ["rate", "scale"] and ps.size == 3
    lux.testing.check_layer(field, (jnp.array(0.0), jnp.array([0.1, 0.2])), batch_axis=None, dtypes=["float64"])
    both = lux.as_field(Func(2, 3, 1, key=KEY), 3.0)
    assert list(lux.setup(KEY, both)[0].keys()) == ["f", "args"]
    assert lux.setup(KEY, lux.as_field(lambda t, y, k: -k * y, 2.0))[0]["args"] == 2.0
    with pytest.raises(ValueError, match="time_dependent=True"):
        lux.NeuralODE(field, ts=[0.0, 1.0])(jnp.ones(2), ps, st)
    with pytest.raises(TypeError, match=r"lux\.as_field\(f, args\)"):
        lux.NeuralODE(vector_field, ts=[0.0, 1.0])
    for names in [("a",), ("a", "a")]:
        with pytest.raises(ValueError, match=r"`names` are those of the items of `args`, one each, no two alike"):
            lux.as_field(vector_field, (0.1, 0.2), names=names)
    for f in (lux.Dense(2, 2), Robertson, 3):
        with pytest.raises(TypeError, match="a layer is a field as it is"):
            lux.as_field(f)
