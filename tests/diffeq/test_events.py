"""Events that go on: closed forms of times and states, derivatives by all adjoints, and what ends or is refused."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OTHERS = ("direct", "forward", "gauss", "reversible")
ADJOINTS = ["auto", "backsolve", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)]


class Fall(lux.Layer):
    def init_params(self, key):
        return {"g": jnp.array(9.81), "restitution": jnp.array(0.8)}

    def forward(self, y, ps, st):
        return jnp.stack([y[1], -ps["g"] * jnp.ones_like(y[0])]), st


def height(t, y, ps):
    return y[0]


def bounced(t, y, ps):
    return jnp.stack([y[0], -ps["restitution"] * y[1]])


BOUNCE = lux.Event(height, bounced, direction=-1, max_count=8)


def ball(**options):
    return lux.NeuralODE(Fall(), **{"ts": [0.0, 1.0, 2.0], "events": [BOUNCE], **options})


def impacts(h, g, e, n):
    """The times of the first n impacts of a ball dropped from h, and the heights between them."""
    first, k = np.sqrt(2 * h / g), np.arange(n)
    return first + 2 * first * np.cumsum(np.where(k > 0, e ** np.maximum(k, 0.0), 0)), h * e ** (2 * (k + 1))


@pytest.mark.slow
def test_a_bouncing_ball():
    """Times of impacts, heights between them by saved values, what is not reached, and the next program as it is."""
    ts = np.linspace(0.0, 2.0, 9)
    node = ball(ts=ts)
    ps, st = lux.setup(jax.random.key(0), node, dtype="float64")
    assert ps.labels() == ["g", "restitution"]  # of the vector field alone
    sol, _ = node(jnp.array([1.0, 0.0]), ps, st)
    log, (times, heights) = sol.stats["events"], impacts(1.0, 9.81, 0.8, 3)
    np.testing.assert_allclose(log["times"], [*times, *[np.inf] * 5], rtol=1e-13)
    np.testing.assert_array_equal(log["index"], [0, 0, 0, *[-1] * 5])
    assert log["count"][0] == 3
    np.testing.assert_allclose(log["right"][:3], log["left"][:3] * np.array([1.0, -0.8]), atol=1e-14)
    np.testing.assert_allclose(log["right"][:3, 1] ** 2 / (2 * 9.81), heights, rtol=1e-12)
    since = ts - times[1]  # the second flight: 1.25 and 1.5
    flight = log["right"][1, 1] * since - 9.81 * since**2 / 2
    np.testing.assert_allclose(sol.ys[5:7, 0], flight[5:7], rtol=1e-10)


def neuron(**options):
    """Leaky integrate and fire: tau v' = input - v, from 0 to the threshold 1, and again from 0."""

    class Leak(lux.Layer):
        def init_params(self, key):
            return {"tau": jnp.array(0.5), "input": jnp.array(1.5)}

        def forward(self, v, ps, st):
            return (ps["input"] - v) / ps["tau"], st

    fire = lux.Event(lambda t, v, ps: v[0] - 1, lambda t, v, ps: 0 * v, max_count=5)
    return lux.NeuralODE(Leak(), ts=[0.0, 0.3, 1.0, 1.5], events=[fire], **TIGHT, **options)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_derivatives_of_times_and_states(adjoint):
    node = neuron(adjoint=adjoint)
    layout = lux.setup(jax.random.key(0), node)[0].layout

    def outputs(z):
        sol, _ = node(z[2:], lux.ComponentVector(z[:2], layout), {})
        return jnp.concatenate([sol.stats["events"]["times"][:2], sol.ys[2:, 0]])

    def closed(z):
        tau, current, v0 = z
        first, period = tau * jnp.log((current - v0) / (current - 1)), tau * jnp.log(current / (current - 1))
        since = jnp.array([1.0, 1.5]) - first - period * jnp.array([0.0, 1.0])
        return jnp.concatenate([jnp.stack([first, first + period]), current * (1 - jnp.exp(-since / tau))])

    z, weights = jnp.array([0.5, 1.5, 0.1]), jnp.array([1.0, -2.0, 3.0, 0.5])
    np.testing.assert_allclose(outputs(z), closed(z), rtol=1e-8)
    got = jax.jit((jax.jacfwd if adjoint == "forward" else jax.grad)(lambda z: outputs(z) @ weights))(z)
    rtol = 1e-5 if adjoint == "direct" else 1e-7  # it differentiates the size of the first step, too
    np.testing.assert_allclose(got, jax.grad(lambda z: closed(z) @ weights)(z), rtol=rtol)
    if adjoint == "direct":  # second derivatives
        hessian = jax.jit(jax.hessian(lambda z: outputs(z) @ weights))(z)
        np.testing.assert_allclose(hessian, jax.hessian(lambda z: closed(z) @ weights)(z), rtol=1e-3)


@pytest.mark.exhaustive
def test_a_thermostat_with_a_jump_and_a_learned_condition():
    """Two events in turn, a window opened at a known time, and derivatives by the thresholds, which layers hold."""

    class Below(lux.Layer):
        sign: float

        def init_params(self, key):
            return {"at": jnp.array(20.0 + self.sign)}

        def forward(self, y, ps, st):
            return self.sign * (y[0] - ps["at"]), st

    def heat(y):
        return jnp.stack([60 * y[1] - y[0], 0 * y[1]])

    switches = [lux.Event(Below(s), lambda t, y, ps, on=on: jnp.stack([y[0], 0 * y[1] + on]), direction=1)
                for s, on in ((1.0, 0.0), (-1.0, 1.0))]  # fmt: skip
    window = lux.Jumps([0.2], lambda t, y, ps: y - jnp.array([0.2, 0.0]))
    node = lux.NeuralODE(heat, ts=[0.0, 0.25], jumps=window, events=switches, output="solution", **TIGHT)
    ps, st = lux.setup(jax.random.key(0), node, dtype="float64")
    assert ps.labels() == ["events_0.condition.at", "events_1.condition.at"]

    def closed(high, low):
        """Off from 20.5 down to `low`, on up to `high`, off again, colder at 0.2, on at `low`."""
        first = jnp.log(20.5 / low)
        second = first + jnp.log((60 - low) / (60 - high))
        colder = high * jnp.exp(second - 0.2) - 0.2
        return jnp.stack([first, second, 0.2 + jnp.log(colder / low)])

    def times(p):
        sol, _ = node(jnp.array([20.5, 0.0]), lux.ComponentVector(p, ps.layout), st)
        return sol.stats["events"]["times"][:3], sol.stats["events"]["index"]

    (got, index), slope = jax.jit(lambda p: (times(p), jax.jacrev(lambda p: times(p)[0])(p)))(ps.data)
    np.testing.assert_array_equal(index[:4], [1, 0, 1, -1])
    np.testing.assert_allclose(got, closed(21.0, 19.0), rtol=1e-8)
    np.testing.assert_allclose(slope, np.stack(jax.jacrev(closed, (0, 1))(21.0, 19.0), -1), rtol=1e-6, atol=1e-9)


def clock(*events, **options):
    """y' = 0, from zeros of three."""
    node = lux.NeuralODE(jnp.zeros_like, events=list(events), **{"ts": [0.0, 1.0, 2.0], **options})
    return node(jnp.zeros(3), {}, {})[0]


def noted(i, value=1.0):
    return lambda t, y, ps: jnp.asarray(y).at[i].set(2 * jnp.sum(y) + value)


@pytest.mark.exhaustive
def test_many_in_one_step_together_and_at_the_start():
    steps = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 2.0}
    first = lux.Event(lambda t, y, ps: t - 0.7, noted(0))
    second = lux.Event(lambda t, y, ps: (t - 0.3) * (t - 1.3), noted(1), direction=1)
    both = lux.Event(lambda t, y, ps: 3 * (t - 1.3), noted(2))
    sol = clock(both, first, second, **steps)
    np.testing.assert_allclose(sol.stats["events"]["times"][:3], [0.7, 1.3, 1.3], rtol=1e-14)
    np.testing.assert_array_equal(sol.stats["events"]["index"][:4], [1, 0, 2, -1])
    np.testing.assert_allclose(sol.ys, [[0, 0, 0], [1, 0, 0], [1, 9, 3]])  # 3 = 2 * 1 + 1, 9 = 2 * (1 + 3) + 1
    twice = clock(lux.Event(lambda t, y, ps: (t - 0.3) * (t - 1.3), noted(1)), **steps)
    np.testing.assert_allclose(twice.stats["events"]["times"][:3], [0.3, 1.3, np.inf], rtol=1e-14)
    assert clock(lux.Event(lambda t, y, ps: t, noted(0))).stats["events"]["count"][0] == 0  # from zero on is none
    thrown, _ = ball(ts=[0.0, 0.9])(jnp.array([0.0, 9.81 / 4]), {"g": 9.81, "restitution": 0.5}, {})
    np.testing.assert_allclose(thrown.stats["events"]["times"][:3], [0.5, 0.75, 0.875], rtol=1e-12)


@pytest.mark.slow
def test_a_condition_that_is_all_but_a_step_function():
    """Its slope next to the root says nothing of where that is."""
    steep = lux.Event(lambda t, y, ps: jax.nn.sigmoid(-3e17 * (y[0] - 0.77)) - 0.5, max_count=2)
    sol, _ = lux.NeuralODE(jnp.ones_like, ts=[0.0, 2.0], events=[steep])(jnp.zeros(1), {}, {})
    np.testing.assert_allclose(sol.stats["events"]["times"], [0.77, np.inf], rtol=1e-14)


@pytest.mark.slow
def test_a_condition_that_is_nearly_met_at_the_start_or_after_a_jump():
    """Of a long solve in single precision: the event comes, however soon."""
    full = lux.Event(lambda t, y, ps: y[0] - 1.01, terminal=True)
    node = lux.NeuralODE(jnp.ones_like, ts=[0.0, 1000.0], jumps=lux.Jumps([1.0], amounts=0.0), events=[full])
    for start, t in ((0.0, 1.01), (1.005, 0.005)):
        np.testing.assert_allclose(node(jnp.array([start], "float32"), {}, {})[0].t1, t, atol=1e-5)


@pytest.mark.slow
def test_a_condition_that_is_not_a_number_fails():
    """At the start, or at the end, where it would else be no event."""
    for level in (0.5, -0.5):
        event = lux.Event(lambda t, y, ps, level=level: jnp.sqrt(level * (t - 0.5)) + 1)
        sol = clock(event)
        assert sol.result == diffrax.RESULTS.nonfinite and jnp.isnan(sol.ys).all()


@pytest.mark.exhaustive
def test_a_terminal_event_and_time_backward():
    end = lux.Event(lambda t, y, ps: t - 0.6, noted(0), terminal=True)
    sol = clock(end)
    np.testing.assert_array_equal(sol.ys[:, 0], [0, 1, 1])  # held
    assert sol.result == diffrax.RESULTS.event_occurred
    np.testing.assert_allclose(sol.t1, 0.6, rtol=1e-14)
    np.testing.assert_allclose(clock(end, output="final"), [1, 0, 0])
    risen = lux.NeuralODE(jnp.ones_like, ts=[0.0, 2.0], events=[lux.Event(lambda t, y, ps: y[0] - 1, terminal=True)])
    np.testing.assert_allclose(jax.grad(lambda y: risen(y, {}, {})[0].t1)(jnp.array([0.25])), [-1.0], rtol=1e-12)
    back = lux.NeuralODE(jnp.ones_like, ts=[1.0, 0.0], events=[lux.Event(height, lambda t, y, ps: y + 1)])
    sol, _ = back(jnp.array([0.25]), {}, {})
    np.testing.assert_allclose(sol.stats["events"]["times"][0], 0.75, rtol=1e-14)
    np.testing.assert_allclose(sol.ys[-1], [0.25], rtol=1e-13)


@pytest.mark.exhaustive
def test_a_solve_ends_at_the_nth_event():
    node = ball(events=[lux.Event(height, bounced, direction=-1, terminal=5)], ts=[0.0, 9.0])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def fifth(restitution):
        sol, _ = node(jnp.array([1.0, 0.0]), {"g": 9.81, "restitution": restitution}, {})
        return sol.stats["events"]["times"][4], sol

    for e in (0.8, 0.3):  # with 0.3, infinitely many bounces come before the time 1
        (_, sol), slope = fifth(e)
        times = sol.stats["events"]["times"]
        np.testing.assert_allclose(times, impacts(1.0, 9.81, e, 5)[0], rtol=1e-9)
        assert times.shape == (5,) and sol.result == diffrax.RESULTS.event_occurred and sol.t1 == times[4]
        low, high = (impacts(1.0, 9.81, e + step, 5)[0][4] for step in (-1e-6, 1e-6))
        np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-6)


@pytest.mark.exhaustive
def test_samples_have_events_of_their_own():
    node, ps = ball(batching="vmap"), {"g": jnp.array(9.81), "restitution": jnp.array(0.8)}
    start = jnp.array([[1.0, 0.0], [0.5, 0.0], [50.0, 0.0]])

    def loss(ps, node, start):
        sol, _ = node(start, ps, {})
        times = sol.stats["events"]["times"]
        return jnp.sum(jnp.where(jnp.isfinite(times), times, 0)) + jnp.sum(sol.ys**2), sol

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, sol), slope = run(ps, node, start)
    np.testing.assert_array_equal(sol.stats["events"]["count"][:, 0], [3, 5, 0])
    total, alone = {"g": 0.0, "restitution": 0.0}, node.replace(batching="joint")
    for i in range(3):
        (_, one), part = run(ps, alone, start[i])
        np.testing.assert_allclose(sol.ys[i], one.ys, rtol=1e-9, atol=1e-12)
        total = {name: total[name] + part[name] for name in total}
    for name in total:
        np.testing.assert_allclose(slope[name], total[name], rtol=1e-8)


@pytest.mark.exhaustive
def test_events_without_end_fail_and_say_so():
    ps = {"g": jnp.array(9.81), "restitution": jnp.array(0.5)}
    many = ball(events=[BOUNCE.replace(max_count=80)])
    for node, sentence in ((many, "without a move of time"), (ball(), "more than max_count times")):
        sol, _ = node(jnp.array([1.0, 0.0]), ps, {})
        assert jnp.isnan(sol.ys).all() and jnp.isnan(sol.stats["events"]["times"]).all()
        with pytest.raises(RuntimeError, match=sentence):
            lux.raise_if_failed(sol)


@pytest.mark.exhaustive
def test_what_is_refused():
    wrong = lux.Event(lambda t, y, ps: t - 1, lambda t, y, ps: y[:1])
    noise = {"ts": [0.0, 1.0], "dt0": 0.1, "events": [BOUNCE]}
    for make, sentence in {
        lambda: lux.Event(lambda y: y[0]): r"a function of \(t, y, ps\)",
        lambda: lux.Event(height, direction=2): "expected 1 where the condition rises",
        lambda: clock(lux.Event(lambda t, y, ps: y)): r"returns one real number, negative on one side, got f64\[3\]",
        lambda: clock(lux.Event(lambda t, y, ps: t > 1)): "returns one real number",
        lambda: clock(wrong): "the effect of Event must keep the shape",
        lambda: clock(lux.Event(height), saveat=diffrax.SaveAt(steps=True)): "takes no saveat",
        lambda: clock(lux.Event(height), event=diffrax.Event(height)): "takes no event",
        lambda: clock(diffrax.Event(height)): "a diffrax.Event is for `event`",
        lambda: lux.NeuralDSDE(jnp.zeros_like, jnp.zeros_like, **noise): "has no events",
    }.items():
        with pytest.raises((TypeError, ValueError), match=sentence):
            make()
