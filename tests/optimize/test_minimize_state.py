"""minimize with a state: carried by optax methods, refused elsewhere where it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import lux_sciml as lux

OTHERS = {"L-BFGS-B": "L-BFGS-B", "Nelder-Mead": "Nelder-Mead", "BFGS of optimistix": optx.BFGS(1e-6, 1e-6)}


def regression(key):
    model = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.BatchNorm(4), lux.Dense(4, 1))
    ps, st = lux.setup(key, model)
    x = jax.random.normal(jax.random.key(1), (32, 2), ps.dtype)

    def loss(ps, st, data):
        y, st = model(data, ps, st)
        return jnp.mean((y[:, 0] - data[:, 0]) ** 2), st

    return loss, ps, st, x


@pytest.mark.slow
def test_the_statistics_of_batchnorm_go_along(key):
    loss, ps, st, x = regression(key)
    transform = optax.adam(0.05)
    result = lux.minimize(loss, ps, method=transform, args=x, state=st, max_steps=200, keep_best=False)

    @jax.jit
    def step(ps, st, memory):
        (value, st), gradient = jax.value_and_grad(loss, has_aux=True)(ps, st, x)
        updates, memory = transform.update(gradient, memory, ps)
        return optax.apply_updates(ps, updates), st, memory, value

    with jax.numpy_dtype_promotion("standard"):
        memory = transform.init(ps)
        for _ in range(200):
            ps, st, memory, _ = step(ps, st, memory)
    value, st = loss(ps, st, x)
    np.testing.assert_allclose(result.params, ps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.value, value, rtol=1e-4)
    for found, expected in zip(jax.tree.leaves(result.state), jax.tree.leaves(st), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    in_test, _ = loss(result.params, lux.testmode(result.state), x)
    assert in_test < 0.05  # with the statistics of one update it is 0.5


def test_the_best_parameters_come_with_their_state():
    def loss(p, st):
        return jnp.abs(p[0] - 1.0), {"calls": st["calls"] + 1}

    st = {"calls": jnp.array(0)}
    best = lux.minimize(loss, jnp.zeros(1), method=optax.sgd(0.3), state=st, max_steps=10)
    assert best.state["calls"] == 1 + np.argmin(best.history) < 11
    last = lux.minimize(loss, jnp.zeros(1), method=optax.sgd(0.3), state=st, max_steps=10, keep_best=False)
    assert last.state["calls"] == 11


def test_random_keys_advance(key):
    seen = []

    def loss(p, st):
        key, new = jax.random.split(st["key"])
        noise = jax.random.normal(key, (), p.dtype)
        jax.debug.callback(lambda x: seen.append(float(x)), noise)
        return jnp.sum(p**2) + 0 * noise, {"key": new}

    result = lux.minimize(loss, jnp.ones(2), method=optax.sgd(0.1), state={"key": key}, max_steps=20)
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 21
    assert jnp.issubdtype(result.state["key"].dtype, jax.dtypes.prng_key)


def test_the_state_of_a_rejected_trial_is_dropped():
    def loss(p, st):
        value = jnp.where(p[0] < 0, jnp.nan, p[0] - jnp.log(p[0]))
        return value, {"accepted": st["accepted"] + 1, "last": p}

    st = {"accepted": jnp.array(0), "last": jnp.zeros(1)}
    result = lux.minimize(loss, jnp.array([3.0]), method=optax.sgd(5.0), state=st, max_steps=12, keep_best=False)
    shortened = int(result.message.split("; ")[1].split()[0])
    assert shortened > 0 and result.state["accepted"] == 13 - shortened
    np.testing.assert_allclose(result.state["last"], result.params)


def test_a_line_search_sees_one_state(key):
    """Dropout with another mask at each evaluation would lead it astray."""

    def loss(p, st):
        key, new = jax.random.split(st["key"])
        keep = jax.random.bernoulli(key, 0.5, p.shape)
        return jnp.sum(jnp.where(keep, (p - 1) ** 2, 0.0)) + 0.1 * jnp.sum(p**2), {"key": new}

    result = lux.minimize(loss, jnp.zeros(8), method=optax.lbfgs(), state={"key": key}, max_steps=20, keep_best=False)
    assert jnp.isfinite(result.params).all() and result.steps == 20


def test_state_aux_args_and_part_together(key):
    ps = lux.ComponentVector(a=[0.0, 0.0], b=3.0)

    def loss(ps, st, args):
        return jnp.sum((ps.a - args["to"]) ** 2) + ps.b, {"n": st["n"] + 1}, {"sum": jnp.sum(ps.data), "n": st["n"]}

    result = lux.minimize(
        loss,
        ps,
        method=optax.sgd(0.2),
        args={"to": 2.0},
        state={"n": jnp.array(0)},
        has_aux=True,
        trainable="a",
        keep_best=False,
        max_steps=50,
    )
    np.testing.assert_allclose(result.params.a, 2.0, atol=1e-6)
    assert result.params.b == 3.0 and result.state["n"] == 51
    np.testing.assert_allclose(result.aux["sum"], 7.0, atol=1e-5)


@pytest.mark.parametrize("method", OTHERS.values(), ids=OTHERS)
def test_methods_that_do_not_step_refuse_a_state_that_changes(key, method):
    loss, ps, st, x = regression(key)
    with pytest.raises(ValueError, match=r"updates `layer_1\.running_mean` of the state.*lux\.testmode\(state\)"):
        lux.minimize(loss, ps, method=method, args=x, state=st)


@pytest.mark.parametrize("method", OTHERS.values(), ids=OTHERS)
def test_and_take_one_that_does_not(key, method):
    loss, ps, st, x = regression(key)
    st = lux.testmode(st)
    result = lux.minimize(loss, ps, method=method, args=x, state=st, max_steps=5)
    assert result.value <= loss(ps, st, x)[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), result.state, st))
    assert jax.tree.structure(result.state) == jax.tree.structure(st)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, st: jnp.sum(p), r"with state= the loss must return \(value, state\), got float64\[\]"),
        (lambda p, st: (jnp.sum(p), st, 1.0), r"must return \(value, state\), got a tuple"),
    ],
)
def test_what_a_loss_with_a_state_returns(loss, message):
    with pytest.raises(TypeError, match=message):
        lux.minimize(loss, jnp.ones(2), method=optax.adam(0.1), state={"n": jnp.zeros(2)})


@pytest.mark.parametrize(
    "change", [lambda st: {}, lambda st: {"n": st["n"].astype("float32")}, lambda st: {"n": st["n"][:1]}]
)
def test_a_state_of_another_kind_is_refused(change):
    with pytest.raises(ValueError, match="must have the structure, shapes and dtypes"):
        lux.minimize(
            lambda p, st: (jnp.sum(p), change(st)), jnp.ones(2), method=optax.adam(0.1), state={"n": jnp.zeros(2)}
        )


def test_a_state_with_aux_says_so():
    with pytest.raises(TypeError, match=r"with state= and has_aux=True the loss must return \(value, state, aux\)"):
        lux.minimize(lambda p, st: (jnp.sum(p), st), jnp.ones(2), method=optax.adam(0.1), state={}, has_aux=True)


def test_a_state_in_training_as_aux_is_pointed_out(key):
    """It would be that of a single update, however many steps are made."""
    loss, ps, st, x = regression(key)
    with pytest.warns(UserWarning, match="Pass it as `state=`"):
        lux.minimize(lambda ps: loss(ps, st, x), ps, method=optax.adam(0.1), has_aux=True, max_steps=2)
    lux.minimize(lambda ps: loss(ps, lux.testmode(st), x), ps, method=optax.adam(0.1), has_aux=True, max_steps=2)


def test_where_the_loss_stays_the_same_the_state_is_that_of_the_last_step():
    def loss(p, st):
        return jnp.sum((p - 1.0) ** 2), {"calls": st["calls"] + 1}

    st = {"calls": jnp.array(0)}
    still = lux.minimize(loss, jnp.zeros(1), method=optax.set_to_zero(), state=st, max_steps=10)
    assert still.state["calls"] == 11
    every = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=4)
    assert lux.minimize(loss, jnp.zeros(1), method=every, state=st, max_steps=10).state["calls"] == 11


@pytest.mark.parametrize("keep_best", [True, False])
def test_aux_is_of_the_evaluation_whose_value_is_returned(key, keep_best):
    def loss(p, st):
        noise = jax.random.normal(st["key"])
        value = jnp.sum((p - 1.0) ** 2) * (1.5 + jnp.tanh(noise))
        return value, {"key": jax.random.split(st["key"])[0]}, {"value": value}

    result = lux.minimize(
        loss, jnp.zeros(2), method=optax.adam(0.1), state={"key": key}, has_aux=True, keep_best=keep_best, max_steps=20
    )
    np.testing.assert_allclose(result.aux["value"], result.value, rtol=1e-12)
