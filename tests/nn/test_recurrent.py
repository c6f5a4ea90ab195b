"""Recurrent cells and their runners: against loops over time, masks, carries, and the cost of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 2))  # batch, time, features
MASK = np.array([[True] * 4, [True, True, False, False], [False] * 4])
CELLS = [lux.RNNCell(2, 3), lux.LSTMCell(2, 3), lux.GRUCell(2, 3)]
STACK = lux.StackedCells(lux.GRUCell(2, 2), jnp.sin, lux.LSTMCell(2, 3))


def loop(cell, ps, st, x, carry=None):
    """Outputs and carries, step by step."""
    ys, carries = [], []
    for t in range(x.shape[-2]):
        (y, carry), st = cell(x[..., t, :] if carry is None else (x[..., t, :], carry), ps, st)
        ys.append(y)
        carries.append(carry)
    return jnp.stack(ys, -2), carries


def close(a, b):
    return all(np.allclose(x, y, atol=1e-13) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# --- cells --------------------------------------------------------------------------------------------------------


def test_parameters_and_their_counts(key):
    counts = [lux.parameter_length(cell) for cell in CELLS]
    assert counts == [gates * (2 * 3 + 3 * 3 + 2 * 3) for gates in (1, 4, 3)]
    ps, _ = lux.setup(key, lux.LSTMCell(2, 3, use_bias=False, train_carry=True))
    assert {name: ps[name].shape for name in ps.keys()} == {
        "weight_ih": (2, 12), "weight_hh": (3, 12), "hidden": (3,), "memory": (3,),
    }  # fmt: skip
    weight = np.abs(lux.setup(key, lux.GRUCell(20, 50))[0].data)
    assert 0.99 / np.sqrt(50) < weight.max() <= 1 / np.sqrt(50)


def test_a_trained_carry_is_where_the_cell_starts(key):
    cell = lux.LSTMCell(2, 3, train_carry=True, init_carry=lux.initializers.ones)
    ps, st = lux.setup(key, cell)
    carry = (jnp.ones((3, 3)), jnp.ones((3, 3)))
    assert close(cell(X[:, 0], ps, st)[0], cell((X[:, 0], carry), ps, st)[0])
    gradient = jax.grad(lambda ps: lux.Recurrence(cell)(jnp.asarray(X), ps, st)[0].sum())(ps)
    assert np.all(gradient.memory != 0) and np.all(gradient.hidden != 0)


def test_cells_refuse_other_shapes(key):
    cell = lux.LSTMCell(2, 3)
    ps, st = lux.setup(key, cell)
    with pytest.raises(ValueError, match=r"LSTMCell\(2, 3\) expects inputs of shape \(\.\.\., 2\), got \(3, 5\)"):
        cell(jnp.zeros((3, 5)), ps, st)
    with pytest.raises(
        ValueError, match=r"a carry of 2 array\(s\) \(hidden, memory\) of shape \(3, 3\), got \(3, 3\)$"
    ):
        cell((X[:, 0], jnp.zeros((3, 3))), ps, st)
    with pytest.raises(ValueError, match="StackedCells holds 2 cells, got a carry of 1 parts"):
        STACK((X[:, 0], (jnp.zeros((3, 2)),)), *lux.setup(key, STACK))


def test_stacked_cells_feed_upwards(key):
    ps, st = lux.setup(key, STACK)
    (y, carry), _ = STACK(X[:, 0], ps, st)
    (low, low_carry), _ = STACK.layer_0(X[:, 0], ps.layer_0, {})
    (expected, high_carry), _ = STACK.layer_2(jnp.sin(low), ps.layer_2, {})
    assert close(y, expected) and close(carry, (low_carry, high_carry))


# --- runners ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [*CELLS, STACK], ids=lambda cell: type(cell).__name__)
def test_recurrence_is_the_loop_over_time(key, cell):
    ps, st = lux.setup(key, cell)
    ys, carries = loop(cell, ps, st, X)
    run = lux.Recurrence(cell, return_sequence=True, return_carry=True)
    (y, carry), _ = run(X, ps, st)
    assert close((y, carry), (ys, carries[-1]))
    assert close(lux.Recurrence(cell)(X, ps, st)[0], ys[:, -1])
    assert close(run.replace(checkpoint=True)(X, ps, st)[0], (ys, carries[-1]))
    (y, carry), _ = run.replace(time_major=True)(X.swapaxes(0, 1), ps, st)
    assert close((y.swapaxes(0, 1), carry), (ys, carries[-1]))
    (y, carry), _ = run((X[:, 2:], carries[1]), ps, st)
    assert close((y, carry), (ys[:, 2:], carries[-1]))
    (y, carry), _ = run.replace(reverse=True)(X, ps, st)
    backward, backward_carries = loop(cell, ps, st, X[:, ::-1])
    assert close((y, carry), (backward[:, ::-1], backward_carries[-1]))


def test_one_sequence_without_a_batch(key):
    run = lux.Recurrence(CELLS[1])
    ps, st = lux.setup(key, run)
    assert close(run(X[0], ps, st)[0], run(X, ps, st)[0][0])


def test_masks_make_ragged_sequences(key):
    cell = CELLS[1]
    ps, st = lux.setup(key, cell)
    run = lux.Recurrence(cell, return_sequence=True, return_carry=True)
    (y, carry), _ = run((X, None, MASK), ps, st)
    (last, _), _ = run.replace(return_sequence=False)((X, None, MASK), ps, st)
    for sample, length in enumerate([4, 2, 0]):
        assert not np.any(y[sample, length:])
        alone = lux.Recurrence(cell, return_sequence=True)(X[sample, :length], ps, st)[0]
        assert close(y[sample, :length], alone)
        assert close(last[sample], alone[-1] if length else np.zeros(3))
    assert not any(np.any(part[2]) for part in carry)
    both = lux.BidirectionalRNN(cell, merge=None)
    ps, st = lux.setup(key, both)
    (_, backward), _ = both((X, None, MASK), ps, st)
    (_, alone), _ = both(X[1, :2], ps, st)
    assert close(backward[1, :2], alone)


def test_padding_has_no_gradient(key):
    run = lux.Recurrence(CELLS[2])
    ps, st = lux.setup(key, run)
    gradient = jax.grad(lambda x: jnp.sum(run((x, None, MASK), ps, st)[0] ** 2))(jnp.asarray(X))
    assert np.array_equal(np.any(gradient != 0, axis=-1), MASK)


def test_bidirectional(key):
    rnn = lux.BidirectionalRNN(CELLS[0], CELLS[2], return_carry=True)
    ps, st = lux.setup(key, rnn)
    (y, carries), _ = rnn(X, ps, st)
    forward, c = loop(CELLS[0], ps.cell, {}, X)
    backward, d = loop(CELLS[2], ps.backward_cell, {}, X[:, ::-1])
    assert close(y, jnp.concatenate([forward, backward[:, ::-1]], -1)) and close(carries, (c[-1], d[-1]))
    added = rnn.replace(merge=jnp.add, return_carry=False)
    assert close(added(X, ps, st)[0], forward + backward[:, ::-1])
    again = rnn.replace(return_carry=False)((X, carries), ps, st)[0]
    assert close(again[:, 0, :3], CELLS[0]((X[:, 0], carries[0]), ps.cell, {})[0][0])
    assert lux.parameter_length(lux.BidirectionalRNN(CELLS[0])) == 2 * lux.parameter_length(CELLS[0])


def test_a_stateful_cell_goes_on_where_it_was(key):
    cell = lux.StatefulRecurrentCell(lux.LSTMCell(2, 3, train_carry=True, init_carry=lux.initializers.ones), 3)
    ps, start = lux.setup(key, cell)
    step, st, ys = jax.jit(cell.__call__), start, []
    for t in range(4):
        y, st = step(X[:, t], ps, st)
        ys.append(y)
    assert step._cache_size() == 1
    assert close(jnp.stack(ys, 1), loop(cell.cell, ps, {}, X)[0])
    again, _ = cell(X[:, 0], ps, lux.update_state(st, "started", jnp.array(False)))
    assert close(again, ys[0])
    with pytest.raises(ValueError, match=r"of shape \(3,\), got inputs \(2, 2\); batch_shape=\(2,\) is for these"):
        cell(jnp.zeros((2, 2)), ps, start)


def test_dropout_between_cells_is_drawn_anew_at_each_step(key):
    cell = lux.StackedCells(lux.RNNCell(2, 40), lux.Dropout(0.5))
    run = lux.Recurrence(cell, return_sequence=True)
    ps, st = lux.setup(key, run)
    y, st_next = run(X, ps, st)
    dropped = np.asarray(y == 0)
    assert 0.3 < dropped.mean() < 0.7 and np.any(dropped[:, 0] != dropped[:, 1])
    assert st_next["layer_1"]["key"] != st["layer_1"]["key"]


def test_reverse_sequence():
    assert np.array_equal(lux.ReverseSequence()(X, {}, {})[0], X[:, ::-1])
    assert np.array_equal(lux.ReverseSequence(0)(X, {}, {})[0], X[::-1])
    with pytest.raises(ValueError, match=r"ReverseSequence\(3\) flips axis 3, got an input of shape \(3, 4, 2\)"):
        lux.ReverseSequence(3)(X, {}, {})


def test_runners_refuse_what_they_cannot_run(key):
    with pytest.raises(TypeError, match=r"Recurrence runs a recurrent cell, got Dense\(2, 3\)"):
        lux.Recurrence(lux.Dense(2, 3))
    run = lux.Recurrence(CELLS[0])
    ps, st = lux.setup(key, run)
    with pytest.raises(ValueError, match=r"sequence of shape \(3, 4, 2\) has shape \(3, 4\), got \(3,\)"):
        run((X, None, MASK[:, 0]), ps, st)
    with pytest.raises(ValueError, match=r"\(\.\.\., time, features\), got \(2,\)"):
        run(X[0, 0], ps, st)


def test_summary_and_layers_around_cells(key):
    assert "float64[3,2]" in lux.summary(lux.Recurrence(STACK), X)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_cost_of_the_gradient_is_linear_in_length(key, checkpoint):
    run = lux.Recurrence(lux.GRUCell(2, 3), checkpoint=checkpoint)
    ps, st = lux.setup(key, run)

    def size(length):
        """Operations in the gradient's program (a loop counts once), and bytes of temporary memory."""
        compiled = jax.jit(jax.grad(lambda ps, x: run(x, ps, st)[0].sum())).lower(ps, jnp.ones((length, 2))).compile()
        return compiled.as_text().count("\n"), compiled.memory_analysis().temp_size_in_bytes

    (lines, small), (more_lines, large) = size(64), size(256)
    assert more_lines == lines and large < 4.5 * small


LAYERS = [
    (lux.RNNCell(2, 3, jax.nn.softplus), X[:, 0], {}),
    (lux.LSTMCell(2, 3, train_carry=True), X[:, 0], {}),
    (lux.GRUCell(2, 3, use_bias=False), (X[:, 0], RNG.normal(size=(3, 3))), {}),
    (STACK, X[:, 0], {}),
    (lux.Recurrence(STACK, return_carry=True, checkpoint=True), X, {}),
    (lux.Recurrence(lux.LSTMCell(2, 3, train_carry=True), return_sequence=True), (X, None, MASK), {}),
    (lux.BidirectionalRNN(lux.RNNCell(2, 3)), X, {"derivatives": ("reverse",)}),
    (lux.StatefulRecurrentCell(lux.LSTMCell(2, 3), 3), X[:, 0], {"batch_axis": None}),
    (lux.ReverseSequence(), X, {}),
]


@pytest.mark.parametrize(("layer", "x", "options"), LAYERS, ids=lambda value: type(value).__name__)
def test_layers_keep_the_contract(layer, x, options):
    check_layer(layer, x, **options)
