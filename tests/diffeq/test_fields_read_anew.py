"""What a field reads besides its arguments is read as it is at the call."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RATE = 1.0
RATES = np.array([1.0])
Y = np.array([1.0, 2.0])


class Settings:
    rate = 1.0

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, y):
        return -self.rate * y


def decay(y):
    return -RATE * y


def derivatives_at(rate, monkeypatch, layer, y):
    monkeypatch.setitem(globals(), "RATE", rate)
    ps, st = lux.setup(jax.random.key(0), layer)

    def total(y):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(layer(y, ps, st)[0]))

    return jax.tree.map(np.asarray, jax.value_and_grad(total)(y))


SPAN = {"ts": (0.0, 1.0), "output": "final"}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("make", "y"),
    [
        (lambda: lux.NeuralODE(decay, **SPAN), Y),
        (lambda: lux.NeuralODE(decay, adjoint="direct", batching="vmap", **SPAN), Y[:, None]),
        (lambda: lux.NeuralODE(decay, adjoint="backsolve", **SPAN), Y),
        (lambda: lux.NeuralODE(decay, adjoint="gauss", **SPAN), Y),
        (lambda: lux.SplitODE(decay, decay, **SPAN), Y),
        (lambda: lux.NeuralDSDE(decay, decay, dt0=0.25, **SPAN), Y),
        (lambda: lux.WithCosts(lux.NeuralODE(decay, **SPAN), ("kinetic",)), Y),
    ],
)
def test_a_global_that_has_changed_changes_the_solve_and_its_gradient(make, y, monkeypatch):
    before = derivatives_at(1.0, monkeypatch, make(), y)
    after = derivatives_at(2.0, monkeypatch, make(), y)
    jax.clear_caches()
    want = derivatives_at(2.0, monkeypatch, make(), y)
    jax.tree.map(np.testing.assert_array_equal, after, want)
    assert before[0] != after[0] and not np.allclose(*(jax.tree.leaves(grads[1])[0] for grads in (before, after)))


@pytest.mark.exhaustive
def test_elements_attributes_and_names_that_code_makes_up_are_read_anew():
    settings = Settings(1.0)
    for change, field in (
        (lambda rate: np.copyto(RATES, rate), lambda y: -RATES[0] * y),
        (lambda rate: setattr(settings, "rate", rate), settings),
        (lambda rate: setattr(Settings, "rate", rate), lambda y: -getattr(Settings, "rate") * y),  # noqa: B009
    ):
        node = lux.NeuralODE(field, **SPAN)
        for rate in (1.0, 2.0, 1.0):
            change(rate)
            assert jnp.allclose(node(Y, {}, {})[0], Y * jnp.exp(-rate), rtol=1e-5)


@pytest.mark.slow
def test_an_event_reads_anew(monkeypatch):
    node = lux.NeuralODE(jnp.negative, event=diffrax.Event(lambda t, y, args, **_: y[0] < RATE / 2), **SPAN)
    for rate in (1.0, 1.6):
        monkeypatch.setitem(globals(), "RATE", rate)
        assert (node(Y, {}, {})[0][0] > 0.5) == (rate > 1)


@pytest.mark.slow
def test_a_vector_field_that_is_made_anew_reads_anew(monkeypatch):
    def end():
        term = diffrax.ODETerm(lux.vector_field(lambda t, y, p: -RATE * y))
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.1, Y, args={}).ys[-1]

    def layers():
        term = diffrax.ODETerm(lux.vector_field(lux.Lambda(decay), {}))
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.1, Y, args={}).ys[-1]

    for solve in (end, layers):
        for rate in (1.0, 2.0):
            monkeypatch.setitem(globals(), "RATE", rate)
            assert jnp.allclose(solve(), Y * jnp.exp(-rate), rtol=1e-3)


@pytest.mark.exhaustive
def test_what_has_not_changed_is_traced_once():
    traces = []

    def field(y):
        traces.append(None)
        return -RATE * y

    node = lux.NeuralODE(field, **SPAN)
    node(Y, {}, {})
    once = len(traces)
    node(Y, {}, {})
    assert len(traces) == once
