"""A run that goes on: 100 steps and 100 more are 200 steps, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import lux_sciml as lux

X = np.linspace(-1.0, 1.0, 16)[:, None]
MODEL = lux.Chain(lux.Dense(1, 4, jnp.tanh), lux.BatchNorm(4), lux.Dropout(0.2), lux.Dense(4, 1))


def rosenbrock(p, scale):
    return (1 - p.x) ** 2 + scale * (p.y - p.x**2) ** 2


START = {"x": -1.2, "y": 1.0}


def same(a, b):
    """Whether two results are equal in every bit."""
    pairs = zip(jax.tree.leaves((a.params, a.state)), jax.tree.leaves((b.params, b.state)), strict=True)
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    assert all(np.array_equal(data(x), data(y)) for x, y in pairs)
    assert np.array_equal(a.history, b.history) and a.value == b.value
    assert (a.steps, a.evaluations, a.success, a.message) == (b.steps, b.evaluations, b.success, b.message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        optax.MultiSteps(optax.adam(optax.cosine_decay_schedule(0.1, 200)), every_k_schedule=3),
        optax.lbfgs(),
        optx.LBFGS(rtol=1e-14, atol=1e-14),
        optx.NelderMead(rtol=1e-14, atol=1e-14),
    ],
    ids=["adam with a schedule", "optax.lbfgs", "LBFGS", "NelderMead"],
)
def test_halves_make_the_whole(method):
    def run(steps, **given):
        return lux.minimize(rosenbrock, lux.ComponentVector(START), method=method, args=30.0, max_steps=steps, **given)

    n = 200 if isinstance(method, optax.MultiSteps) else 12
    whole, first = run(n), run(n // 2)
    steps = []
    rest = run(n - n // 2, resume=first, callback=lambda step, ps, value: steps.append(step), callback_every=1)
    same(whole, rest)
    assert steps == list(range(n // 2 + 1, n + 1)) and len(rest.history) == n + 1


def test_the_state_of_the_layers_goes_on_and_so_does_what_a_callback_stopped(key):
    ps, st = lux.setup(key, MODEL)

    def loss(ps, st, data):
        y, st = MODEL(data, ps, st)
        return jnp.mean((y - data**2) ** 2), st

    def run(**given):
        return lux.minimize(loss, ps, method=optax.adamw(1e-2), args=X, state=st, keep_best=False, **given)

    stopped = run(max_steps=1000, callback=lambda step, ps, value: step == 7, callback_every=7)
    assert stopped.stopped and stopped.steps == 7
    same(run(max_steps=20), run(max_steps=13, resume=stopped))
    part = [run(max_steps=steps, trainable="layer_0.*") for steps in (4, 2)]
    same(part[0], run(max_steps=2, trainable="layer_0.*", resume=part[1]))


def test_what_cannot_go_on_is_refused():
    start = lux.ComponentVector(START)
    adam = lux.minimize(rosenbrock, start, method=optax.adam(0.1), args=1.0, max_steps=3)
    bfgs = lux.minimize(rosenbrock, start, method="BFGS", args=1.0)

    def on(result, method=None, start=start, **given):
        return lux.minimize(rosenbrock, start, method=method or optax.adam(0.1), args=1.0, resume=result, **given)

    with pytest.raises(ValueError, match="BFGS cannot be resumed, as SciPy keeps its memory to itself"):
        on(adam, "BFGS")
    with pytest.raises(ValueError, match="this result holds no memory of its method"):
        on(bfgs)
    with pytest.raises(ValueError, match="the result is of a method of optax, and this method is one of optimistix"):
        on(adam, optx.LBFGS(rtol=1e-3, atol=1e-3))
    for method, other in ((optax.sgd(0.1), start), (optax.adam(0.1), start.astype("float32"))):
        with pytest.raises(ValueError, match="the result is of another method, of one with other options, or of"):
            on(adam, method, other)
    with pytest.raises(ValueError, match="resume goes on from one result: leave out `starts`"):
        on(adam, starts=[start])
    with pytest.raises(TypeError, match="resume is a result of minimize, got a dict"):
        on(dataclasses.asdict(bfgs))
