"""A sample that fails, in whatever way, is NaN, and leaves the values and the gradients of the others as they are."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

ADJOINTS = ("checkpointed", "direct", "forward", "backsolve", "gauss")


class Rate(lux.Layer):
    """A vector field with one parameter, `function(w, y)`."""

    function: lux.Layer

    def init_params(self, key):
        return {"w": jnp.ones(())}

    def forward(self, x, ps, st):
        return self.function.function((ps["w"], x)), st


def field(function):
    return Rate(lux.Lambda(lambda wx: function(*wx)))


# of each way to fail: the vector field, two starts that go well, one that does not
WAYS = {
    "the start is NaN": (lambda w, y: -w * y, [0.1, 0.2], jnp.nan),
    "the field has no value at the start": (lambda w, y: jnp.sqrt(1.2 - w * y), [0.1, 0.2], 1.5),
    "the solution grows without bound": (lambda w, y: w * y**2, [0.1, 0.2], 3.0),
    "the solution leaves the domain": (lambda w, y: -w / y, [2.0, 3.0], 0.5),
    "too many steps": (lambda w, y: jnp.where(y > 1, -1e5 * w * (y - 2), -w * y), [0.1, 0.2], 3.0),
}


def gradients(layer, make_input, good, bad):
    """Gradients of the sum of what is not NaN, and values: with the bad sample, and with a good one left out."""
    ps, st = lux.setup(jax.random.key(0), layer)

    def loss(ps, starts, weights):
        final = layer(make_input(starts), ps, st)[0]
        return jnp.nansum(weights[:, None] * final), final

    mode = jax.jacfwd if layer.adjoint == "forward" else jax.grad
    f = jax.jit(mode(loss, argnums=(0, 1), has_aux=True))
    with_bad = f(ps, jnp.array([[good[0]], [bad], [good[1]]]), jnp.ones(3))
    without = f(ps, jnp.array([[good[0]], [good[0]], [good[1]]]), jnp.array([1.0, 0.0, 1.0]))
    return with_bad, without


def check(with_bad, without):
    ((of_ps, of_starts), final), ((wanted, wanted_starts), wanted_final) = with_bad, without
    assert np.isnan(final[1]).all()
    np.testing.assert_array_equal(final[::2], wanted_final[::2])
    for got, want in zip(jax.tree.leaves(of_ps), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(of_starts[::2], wanted_starts[::2], rtol=1e-6)
    np.testing.assert_array_equal(of_starts[1], 0.0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_stays_with_its_sample(way, adjoint):
    function, good, bad = WAYS[way]
    layer = lux.NeuralODE(
        field(function), [0.0, 1.0], batching="vmap", output="final", adjoint=adjoint, max_steps=64, rtol=1e-5
    )
    check(*gradients(layer, lambda starts: starts, good, bad))


@pytest.mark.parametrize("adjoint", ["checkpointed", "direct", "gauss"])
def test_a_control_that_is_not_defined_fails_its_sample(adjoint):
    layer = lux.NeuralODE(
        field(lambda w, yu: yu[1] - w * yu[0]), [0.0, 1.0], controlled=True, batching="vmap", output="final",
        adjoint=adjoint, max_steps=64, rtol=1e-5,
    )  # fmt: skip

    def ramps(starts):
        """For each start a path to it, which ends too early where it is above two."""
        ends = jnp.where(starts[:, :1] > 2, 0.5, 1.0)
        ts = jnp.concatenate([jnp.zeros_like(ends), ends], 1)
        return jax.vmap(diffrax.LinearInterpolation)(ts, jnp.stack([jnp.zeros_like(starts), starts], 1))

    check(*gradients(layer, lambda starts: (starts, ramps(starts)), [0.1, 0.2], 3.0))
    check(*gradients(layer, lambda starts: (jnp.ones_like(starts), ramps(starts)), [0.1, 0.2], jnp.nan))


@pytest.mark.parametrize(
    "make",
    [
        lambda f, **o: lux.SplitODE(lambda y: -y, f, **o),
        lambda f, **o: lux.NeuralDSDE(f, lambda y: 0.1 * y, dt0=0.1, **o),
        lambda f, **o: lux.NeuralDSDE(lambda y: -y, f, dt0=0.1, **o),
        lambda f, **o: lux.MassMatrixODE(f, [1.0], **o),
    ],
    ids=["implicit part", "drift", "diffusion", "mass matrix"],
)
def test_a_failure_in_a_child_stays_with_its_sample(make):
    root = field(WAYS["the field has no value at the start"][0])
    layer = make(root, ts=[0.0, 0.2], batching="vmap", output="final", max_steps=64)
    check(*gradients(layer, lambda starts: starts, [0.1, 0.2], 1.5))


def test_a_constraint_without_a_root_leaves_the_gradient_of_the_others():
    """u' = -w u, z^2 = 1 - u^2: no root for u above one."""
    rate = field(lambda w, y: -w * y[..., :1])
    circle = lux.Lambda(lambda y: y[..., :1] ** 2 + y[..., 1:] ** 2 - 1)
    layer = lux.NeuralDAE(rate, circle, [0.0, 0.2], batching="vmap", output="final", max_steps=64)
    check(*gradients(layer, lambda starts: jnp.concatenate([starts, jnp.ones_like(starts)], 1), [0.1, 0.2], 1.5))


def test_a_single_solve_that_fails_has_a_gradient_of_zero():
    for function, _, bad in WAYS.values():
        node = lux.NeuralODE(field(function), [0.0, 1.0], output="final", max_steps=64)
        value, slope = jax.value_and_grad(lambda ps, node=node, bad=bad: node(jnp.array([bad]), ps, {})[0][0])(
            {"w": jnp.ones(())}
        )
        assert jnp.isnan(value)
        np.testing.assert_array_equal(slope["w"], 0.0)
