"""Recurrent cells and their runners: against loops over time, masks, carries, and the cost of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

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
        ValueError, match=r"(?m)a carry of 2 array\(s\) \(hidden, memory\) of shape \(3, 3\), got \(3, 3\)$"
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


@pytest.mark.slow
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


# --- padding, carries, precisions, degenerate shapes, kinds of input ------------------------------------------------

RUNNERS = [
    lux.Recurrence(lux.GRUCell(2, 3)),
    lux.Recurrence(lux.LSTMCell(2, 3, train_carry=True), return_sequence=True, checkpoint=True),
    lux.Recurrence(lux.RNNCell(2, 3, jnp.exp), reverse=True, time_major=True),
    lux.Recurrence(STACK, return_carry=True),
    lux.BidirectionalRNN(lux.GRUCell(2, 3)),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("run", RUNNERS, ids=lambda run: type(run).__name__)
@pytest.mark.parametrize("filling", [np.nan, np.inf])
def test_what_stands_in_the_padding_is_never_read(key, run, filling):
    ps, st = lux.setup(key, run)
    axes = (1, 0, 2) if getattr(run, "time_major", False) else (0, 1, 2)

    def loss(ps, x, mask):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(run((x, None, mask), ps, st)[0]))

    x, mask = X.transpose(axes), MASK.transpose(axes[:2])
    expected = jax.value_and_grad(loss, (0, 1))(ps, jnp.asarray(x), mask)
    for kind in (bool, int)[: 1 + (filling is np.inf)]:
        filled = jnp.asarray(np.where(mask[..., None], x, filling))
        found = jax.value_and_grad(loss, (0, 1))(ps, filled, mask.astype(kind))
        for got, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.array_equal(got, right) and np.isfinite(right).all()


def test_masks_hold_booleans_or_integers(key):
    run = RUNNERS[0]
    ps, st = lux.setup(key, run)
    assert close(run((X, None, MASK.tolist()), ps, st)[0], run((X, None, MASK), ps, st)[0])
    with pytest.raises(TypeError, match="a mask holds booleans or integers"):
        run((X, None, np.where(MASK, 0.0, -np.inf)), ps, st)


def listed(carry):
    return list(map(listed, carry)) if isinstance(carry, tuple) else carry


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", [*CELLS, STACK], ids=lambda cell: type(cell).__name__)
def test_carries_take_the_type_of_the_next_one(key, cell):
    runs = [lux.Recurrence(cell, return_carry=True), lux.BidirectionalRNN(cell, return_carry=True)]
    for run in runs:
        ps, st = lux.setup(key, run)
        _, zeros = run(X, ps, st)[0]
        zeros = jax.tree.map(lambda part: jnp.round(4 * part), zeros)
        expected = run((X, zeros), ps, st)[0]
        for kind in ("float32", "bfloat16", "int32"):
            found = run((X, jax.tree.map(lambda part, kind=kind: part.astype(kind), zeros)), ps, st)[0]
            assert close(found, expected) and all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))
        lists = jax.tree.map(lambda part: part, zeros)
        as_lists = (
            [list(part) if isinstance(part, tuple) else part for part in lists] if isinstance(lists, tuple) else lists
        )
        assert close(run((X, as_lists), ps, st)[0], expected)
    ps, st = lux.setup(key, cell)
    start = jax.tree.map(jnp.zeros_like, cell(X[:, 0], ps, st)[0][1])
    for carry in (
        jax.tree.map(lambda part: part.astype("int32"), start),
        list(start) if isinstance(start, tuple) else start,
    ):
        (y, after), _ = cell((X[:, 0], carry), ps, st)
        assert close((y, after), cell((X[:, 0], start), ps, st)[0]) and y.dtype == jnp.float64


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNNERS, ids=lambda run: type(run).__name__)
def test_one_time_and_no_time(key, run):
    ps, st = lux.setup(key, run)
    time_major = getattr(run, "time_major", False)
    for batch, time in ((3, 1), (3, 0)):
        x = jnp.ones((time, batch, 2) if time_major else (batch, time, 2))

        def score(ps, x):
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(run(x, ps, st)[0]))

        leaves = jax.tree.leaves(run(x, ps, st)[0])
        assert all(batch in leaf.shape for leaf in leaves)
        of_ps, of_x = jax.grad(score, (0, 1))(ps, x)
        assert np.isfinite(of_ps.data).all() and of_x.shape == x.shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda cell: lux.WeightNorm(cell, ("weight_hh", "weight_ih")),
        lambda cell: lux.SpectralNorm(cell, "weight_hh"),
        lambda cell: lux.Frozen(cell, ("weight_hh", "hidden")),
        lambda cell: lux.AlternatePrecision(cell, "float64"),
    ],
)
def test_cells_inside_of_wrappers(key, wrap):
    cell = lux.GRUCell(2, 3, train_carry=True, init_carry=lux.initializers.Normal())
    wrapped = wrap(cell)
    for run in (lux.Recurrence(wrapped), lux.Recurrence(lux.StackedCells(wrapped, lux.RNNCell(3, 3)))):
        ps, st = lux.setup(key, run)
        assert run(X, ps, st)[0].shape == (3, 3)
    one = lux.StatefulRecurrentCell(wrapped, 3)
    ps, st = lux.setup(key, one)
    y, st_next = one(X[:, 0], ps, st)
    assert close(y, wrapped(X[:, 0], ps, st["cell"])[0][0]) and jax.tree.structure(st_next) == jax.tree.structure(st)


def test_states_that_are_component_vectors(key):
    """A sequence of vectors, and a carry that is one."""

    class Kick(lux.RecurrentCell):
        def initial_carry(self, ps, batch_shape, dtype):
            return lux.ComponentVector(q=jnp.zeros((), dtype), p=jnp.ones((), dtype))

        def forward(self, x, ps, st):
            u, z = x
            z = lux.ComponentVector(q=z.q + 0.1 * z.p, p=z.p + 0.1 * (u.force - z.q))
            return (z, z), st

    steps = lux.ComponentVector(force=1.0).layout
    us = lux.ComponentVector(jnp.arange(4.0)[:, None], steps)
    z, expected = lux.ComponentVector(q=0.0, p=1.0), []
    for i in range(4):
        z = lux.ComponentVector(q=z.q + 0.1 * z.p, p=z.p + 0.1 * (i - z.q))
        expected.append(z.data)
    (ys, last), _ = lux.Recurrence(Kick(), return_sequence=True, return_carry=True)(us, {}, {})
    assert last.equals(z) and ys.layout is z.layout and np.allclose(ys.data, np.stack(expected))
    start = lux.ComponentVector(q=0.0, p=1.0).astype("float32")
    masked = lux.Recurrence(Kick())((us, start, [True, True, False, False]), {}, {})[0]
    assert np.allclose(masked.data, expected[1])
    with pytest.raises(
        ValueError, match=r"the carry of Kick\(\) is Layout\(2 elements: q \(\), p \(\)\), got f64\[3\]"
    ):
        lux.Recurrence(Kick())((us, jnp.ones(3)), {}, {})


def test_cells_and_sequences_that_are_none(key):
    run = RUNNERS[0]
    ps, st = lux.setup(key, run)
    steps = [X[:, t] for t in range(4)]
    with pytest.raises(TypeError, match=r"takes an array, got a list of 4; `jnp\.stack\(steps, axis=-2\)` makes one"):
        run(steps, ps, st)
    with pytest.raises(TypeError, match=r"`jnp\.stack\(steps, axis=0\)` makes one"):
        run.replace(time_major=True)((steps, None), ps, st)
    with pytest.raises(ValueError, match=r"\(x, carry, mask\), got a tuple of 4"):
        run(tuple(steps), ps, st)
    for make in (lux.Recurrence, lux.BidirectionalRNN, lux.StatefulRecurrentCell):
        with pytest.raises(TypeError, match=rf"{make.__name__}\.cell: expected a recurrent cell, got 2: lux"):
            make([lux.GRUCell(2, 3), lux.GRUCell(3, 3)])
        with pytest.raises(TypeError, match=rf"{make.__name__} runs a recurrent cell, got Dense\(2, 3\)"):
            make(lux.Dense(2, 3))
        with pytest.raises(TypeError, match=rf"{make.__name__}\.cell: expected a layer or a function, got 3"):
            make(3)
    both = lux.BidirectionalRNN(lux.GRUCell(2, 3))
    with pytest.raises(ValueError, match=r"takes a tuple of two carries, got f64\[3,3\]"):
        both((X, jnp.zeros((3, 3))), *lux.setup(key, both))
    with pytest.raises(ValueError, match=r"carry of LSTMCell\(2, 3\) is \(f64\[3,3\], f64\[3,3\]\), got f64\[3,3\]"):
        lstm = lux.Recurrence(lux.LSTMCell(2, 3))
        lstm((X, jnp.zeros((3, 3))), *lux.setup(key, lstm))
    with pytest.raises(ValueError, match=r"the carry of GRUCell\(2, 3\) is f64\[3,3\], got f64\[2,3\]"):
        run((X, jnp.zeros((2, 3))), ps, st)

    class Grows(lux.RecurrentCell):
        def initial_carry(self, ps, batch_shape, dtype):
            return jnp.zeros((*batch_shape, 1), dtype)

        def forward(self, x, ps, st):
            return (x[0], jnp.concatenate([x[1], x[0]], -1)), st

    with pytest.raises(ValueError, match=r"the next carry of Grows\(\), like the one before, is f64\[3,1\], got"):
        lux.Recurrence(Grows())(X, {}, {})


WRONG = [
    (lambda: lux.GRUCell(2, 0), r"^GRUCell\.out_features: expected a whole number of at least 1, got 0"),
    (lambda: lux.RNNCell(2, 3, "tanh"), r"^RNNCell\.activation: expected a function such as jnp\.tanh, got 'tanh'"),
    (lambda: lux.LSTMCell(2.0, 3), r"^LSTMCell\.in_features: expected a whole number, got 2\.0"),
    (lambda: lux.LSTMCell(2, 3, init_bias=0.0), r"^LSTMCell\.init_bias: expected a function"),
    (lambda: lux.Recurrence(CELLS[0], reverse="yes"), r"^Recurrence\.reverse: expected True or False, got 'yes'"),
    (lambda: lux.BidirectionalRNN(CELLS[0], merge="sum"), r"^BidirectionalRNN\.merge: expected a function"),
    (lambda: lux.StatefulRecurrentCell(CELLS[0], (2, -1)), r"batch_shape of sizes from 0 on, got \(2, -1\)"),
    (lambda: lux.ReverseSequence(1.5), r"^ReverseSequence\.axis: expected a whole number, got 1\.5"),
]


@pytest.mark.parametrize(("make", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_options_are_refused_where_they_are_given(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


def test_options_have_one_form():
    for size in (3, [3], np.int64(3), np.array([3])):
        assert lux.StatefulRecurrentCell(CELLS[0], size).batch_shape == (3,)
    assert lux.ReverseSequence(np.int64(0)) == lux.ReverseSequence(0)
    for layer in (*RUNNERS, STACK, lux.StatefulRecurrentCell(CELLS[0], 3)):
        assert eval(repr(layer), vars(lux) | {"jnp": jnp}) == layer


def test_summary_and_layers_around_cells(key):
    assert "float64[3,2]" in lux.summary(lux.Recurrence(STACK), X)


@pytest.mark.exhaustive
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
