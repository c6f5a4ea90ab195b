"""Batch normalization in training inside a solve, by the statistics of the first evaluation."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

NET = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3, jnp.tanh), lux.Dropout(0.3), lux.Dense(3, 2))
Y0 = np.random.default_rng(0).normal(size=(5, 2))
TS = [0.0, 0.5, 1.0]


def node(**options):
    return lux.NeuralODE(NET, ts=TS, output="ys", on_state_update="first", **options)


@pytest.mark.slow
def test_the_statistics_are_those_of_the_first_evaluation():
    """Against the net with them written out, and one mask of the dropout; gradients against differences."""
    layer = node(rtol=1e-8)
    ps, st = lux.setup(jax.random.key(0), layer, dtype=jnp.float64)
    ps = ps.at["layer_1.scale"].set([0.5, 2.0, 1.5])

    def by_hand(data, y0):
        p = lux.ComponentVector(data, ps.layout)

        def normed(h):
            return p.layer_1.scale * (h - mean) / jnp.sqrt(var + 1e-5) + p.layer_1.bias

        h0 = y0 @ p.layer_0.weight + p.layer_0.bias
        mean, var = h0.mean(0), h0.var(0)

        def f(t, y, args):
            h = jnp.tanh(normed(y @ p.layer_0.weight + p.layer_0.bias))
            return NET[2](h, {}, st["layer_2"])[0] @ p.layer_3.weight + p.layer_3.bias

        return diffrax.diffeqsolve(
            diffrax.ODETerm(f), diffrax.Tsit5(), 0.0, 1.0, None, y0, saveat=diffrax.SaveAt(ts=jnp.array(TS)),
            stepsize_controller=diffrax.PIDController(1e-8, 1e-8),
        ).ys  # fmt: skip

    def loss(data, y0):
        ys, after = layer(y0, lux.ComponentVector(data, ps.layout), st)
        return jnp.sum(ys**2), (ys, after)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (ys, after)), grads = run(ps.data, Y0)
    np.testing.assert_allclose(ys, by_hand(ps.data, Y0), rtol=1e-6)
    once = NET(Y0, ps, st)[1]  # the running statistics, moved once, and the next key
    assert jax.tree.structure(once) == jax.tree.structure(after)
    np.testing.assert_allclose(after["layer_1"]["running_mean"], once["layer_1"]["running_mean"], rtol=1e-12)
    np.testing.assert_allclose(after["layer_1"]["running_var"], once["layer_1"]["running_var"], rtol=1e-12)
    assert after["layer_2"]["key"] == once["layer_2"]["key"]
    rng = np.random.default_rng(1)
    along = rng.normal(size=ps.size), rng.normal(size=Y0.shape)
    up, down = (run(ps.data + h * along[0], Y0 + h * along[1])[0][0] for h in (1e-5, -1e-5))
    np.testing.assert_allclose(
        sum(np.vdot(g, d) for g, d in zip(grads, along, strict=True)), (up - down) / 2e-5, rtol=1e-5
    )


@pytest.mark.exhaustive
def test_what_it_does_not_take_is_refused_and_testing_is_as_ever():
    with pytest.raises(ValueError, match=r"on_state_update='first' holds the statistics of a batch, .*'vmap'"):
        node(batching="vmap")
    layer = node()
    ps, st = lux.setup(jax.random.key(0), layer, dtype=jnp.float64)
    tested, after = layer(Y0, ps, lux.testmode(st))
    np.testing.assert_array_equal(tested, layer.replace(on_state_update="raise")(Y0, ps, lux.testmode(st))[0])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), after, lux.testmode(st)))
    images = lux.NeuralODE(lux.InstanceNorm(2, track_stats=True), ts=TS, on_state_update="first")
    with pytest.raises(ValueError, match=r"InstanceNorm.* has statistics for each sample"):
        images(jnp.ones((2, 3, 2)), *lux.setup(jax.random.key(0), images, dtype=jnp.float64))
