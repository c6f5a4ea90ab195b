"""RepeatedLayer and Stack: depth by one scan."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
BLOCK = lux.Chain(lux.Dense(3, 3, jnp.tanh), lux.BatchNorm(3), lux.Dropout(0.25))
INJECTED = lux.Parallel(jnp.add, lux.Dense(3, 3, jnp.tanh), lux.Dense(3, 3))


def unstacked(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@pytest.mark.slow
def test_a_stack_is_a_chain_of_copies(key):
    stack, chain = lux.Stack(BLOCK, 3), lux.Chain([BLOCK] * 3)
    ps, st = lux.setup(key, stack)
    ps_chain, st_chain = lux.setup(key, chain)
    assert ps.size == ps_chain.size == lux.parameter_length(stack) == 3 * (12 + 6)
    for i in range(3):
        for name, mine in ps.layer_0.items():
            assert np.array_equal(mine[i], ps_chain[f"layer_{i}"].layer_0[name])
    y, st_next = stack(X, ps, st)
    y_chain, st_chain = chain(X, ps_chain, st_chain)
    assert np.allclose(y, y_chain, atol=1e-14)
    for i in range(3):
        mine, others = unstacked(st_next, i), st_chain[f"layer_{i}"]
        assert np.allclose(mine["layer_1"]["running_var"], others["layer_1"]["running_var"], rtol=1e-12)
        assert mine["layer_2"]["key"] == others["layer_2"]["key"]


def test_a_stack_keeps_the_declared_order(key):
    layer = lux.Stack(lux.Chain(b=lux.Dense(3, 3), a=lux.Dense(3, 3)), 2)
    assert list(lux.setup(key, layer)[0].labels())[:2] == ["b.weight[0,0,0]", "b.weight[0,0,1]"]


def test_the_program_does_not_grow_with_the_stack(key):
    def equations(n):
        layer = lux.Stack(BLOCK, n)
        return count(jax.make_jaxpr(jax.grad(lambda ps, st: layer(X, ps, st)[0].sum()))(*lux.setup(key, layer)))

    def count(program):
        """With those of the programs inside, which the printed form shows once where JAX has kept them."""
        if hasattr(program, "eqns"):
            return sum(1 + sum(map(count, eqn.params.values())) for eqn in program.eqns)
        if hasattr(program, "jaxpr"):
            return count(program.jaxpr)
        return sum(map(count, program)) if isinstance(program, tuple | list) else 0

    # programs that earlier tests have traced, and JAX has kept, may be others by an equation
    assert equations(30) - equations(2) < 28, "an equation for each further block"


def test_a_checkpointed_stack_has_the_same_gradient_and_keeps_less(key):
    ps, st = lux.setup(key, lux.Stack(BLOCK, 3))

    def gradient(checkpoint):
        layer = lux.Stack(BLOCK, 3, checkpoint)
        return jax.make_jaxpr(f := jax.grad(lambda ps: layer(X, ps, st)[0].sum()))(ps), f(ps)

    (plain, expected), (kept, found) = gradient(False), gradient(True)
    assert np.allclose(found.data, expected.data, atol=1e-13)
    stored = [len(re.findall(r"f64\[3,4,3\]", str(jaxpr))) for jaxpr in (plain, kept)]
    assert stored[1] < stored[0]


def test_only_what_changes_in_the_state_goes_through_the_scan(key):
    for layer in (lux.Stack(BLOCK, 2), lux.RepeatedLayer(BLOCK, 2)):
        ps, st = lux.setup(key, layer)
        st = lux.testmode(st)
        after = layer(X, ps, st)[1]
        assert all(a is b for a, b in zip(jax.tree.leaves(st), jax.tree.leaves(after), strict=True))
        lux.NeuralODE(layer, ts=jnp.linspace(0.0, 0.1, 2))(X, ps, st)


def test_a_state_that_changes_in_part(key):
    for layer in (lux.Stack(BLOCK, 2), lux.RepeatedLayer(BLOCK, 2)):
        ps, st = lux.setup(key, layer)
        st = {**st, "layer_1": lux.testmode(st["layer_1"])}
        after = layer(X, ps, st)[1]
        assert after["layer_1"]["running_mean"] is st["layer_1"]["running_mean"]
        assert after["layer_1"]["running_var"] is st["layer_1"]["running_var"]
        assert np.all(jax.random.key_data(after["layer_2"]["key"]) != jax.random.key_data(st["layer_2"]["key"]))


def test_an_empty_stack_is_the_identity(key):
    for layer in (lux.Stack(BLOCK, 0), lux.RepeatedLayer(BLOCK, 0)):
        ps, st = lux.setup(key, layer)
        assert np.array_equal(layer(X, ps, st)[0], X)
    assert lux.parameter_length(lux.Stack(BLOCK, 0)) == 0


def test_a_repeated_layer_feeds_each_repeat_to_the_next(key):
    layer = lux.RepeatedLayer(BLOCK, 3)
    ps, st = lux.setup(key, layer)
    y, expected_st = X, st
    for _ in range(3):
        y, expected_st = BLOCK(y, ps, expected_st)
    found, found_st = layer(X, ps, st)
    assert np.allclose(found, y, atol=1e-14) and found_st["layer_2"]["key"] == expected_st["layer_2"]["key"]
    assert np.allclose(found_st["layer_1"]["running_mean"], expected_st["layer_1"]["running_mean"], rtol=1e-12)


def test_input_injection_gives_the_input_to_every_repeat(key):
    layer = lux.RepeatedLayer(INJECTED, 3, input_injection=True)
    ps, st = lux.setup(key, layer)
    y = X
    for _ in range(3):
        y, _ = INJECTED((y, X), ps, st)
    assert np.allclose(layer(X, ps, st)[0], y, atol=1e-14)


def test_inputs_take_the_precision_of_the_output(key):
    for layer in (lux.Stack(lux.Dense(3, 3), 2), lux.RepeatedLayer(lux.Dense(3, 3), 2)):
        with jax.numpy_dtype_promotion("standard"):
            assert layer(X.astype("float32"), *lux.setup(key, layer))[0].dtype == jnp.float64


def test_shapes_must_stay(key):
    for layer in (lux.Stack(lux.Dense(3, 2), 2), lux.RepeatedLayer(lux.Dense(3, 2), 2)):
        name = type(layer).__name__
        with pytest.raises(ValueError, match=rf"{name} needs .* got a Dense from \(4, 3\) to \(4, 2\)"):
            layer(X, *lux.setup(key, layer))
    for make in (lux.Stack, lux.RepeatedLayer):
        for count, says in (
            (-1, "expected a whole number of at least 0, got -1"),
            (2.5, "expected a whole number, got 2.5"),
        ):
            with pytest.raises((TypeError, ValueError), match=rf"{make.__name__}\.(n|repeats): {says}"):
                make(BLOCK, count)
        assert make(BLOCK, np.int64(2)) == make(BLOCK, 2)
        with pytest.raises(TypeError, match=rf"{make.__name__}\.layer: expected a layer or a function, got 3"):
            make(3, 2)


def test_stacks_of_vectors_trees_integers_and_empty_batches(key):
    turn = lux.Lambda(lambda z: lux.ComponentVector(q=z.q + 0.5 * z.p, p=z.p - 0.5 * z.q))
    state = expected = lux.ComponentVector(q=[1.0], p=[0.0])
    for _ in range(3):
        expected = turn(expected, {}, {})[0]
    for layer in (lux.Stack(turn, 3), lux.RepeatedLayer(turn, 3)):
        assert layer(state, {}, {})[0].equals(expected)
        with pytest.raises(ValueError, match=r"needs .* got a Lambda from \(2,\) to \{'z': f64\[2\]\}"):
            layer.replace(layer=lambda z: {"z": z})(jnp.ones(2), {}, {})
        with pytest.raises(ValueError, match=r"from Layout\(2 elements: q \(1,\), p \(1,\)\) to Layout\(.* a \(2,\)\)"):
            layer.replace(layer=lambda z: lux.ComponentVector(a=z.data))(state, {}, {})
    tree = {"b": jnp.ones(2), "a": jnp.zeros((3, 1))}
    grow = lux.Lambda(lambda z: {"b": z["b"] + z["a"].sum(), "a": z["a"] + 1})
    for layer in (lux.Stack(grow, 3), lux.RepeatedLayer(grow, 3)):
        assert layer(tree, {}, {})[0]["b"].tolist() == [10, 10]
    for layer in (lux.Stack(lux.Dense(3, 3), 2), lux.RepeatedLayer(lux.Dense(3, 3), 2)):
        ps, st = lux.setup(key, layer)
        x = np.array([[1, 0, 3]])
        assert np.allclose(layer(x, ps, st)[0], layer(x.astype(float), ps, st)[0])
        gradient = jax.grad(lambda ps, layer=layer, st=st: layer(jnp.zeros((0, 3)), ps, st)[0].sum())(ps)
        assert layer(jnp.zeros((0, 3)), ps, st)[0].shape == (0, 3) and not np.any(gradient.data)


def test_a_state_that_is_passed_through_jit_is_kept(key):
    class Through(lux.Layer):
        def init_state(self, key):
            return {"a": jnp.ones(()), "b": jnp.zeros(())}

        def forward(self, x, ps, st):
            a, b = jax.jit(lambda a, b: (a, b + 1))(st["a"], st["b"])
            return x * a, {"a": a, "b": b}

    for layer in (lux.Stack(Through(), 3), lux.RepeatedLayer(Through(), 3)):
        ps, st = lux.setup(key, layer)
        after = layer(X, ps, st)[1]
        assert after["a"] is st["a"] and np.all(after["b"] == (1 if isinstance(layer, lux.Stack) else 3))


def test_stacks_print_what_they_repeat():
    assert repr(lux.Stack(lux.Dense(2, 2), 3, checkpoint=True)) == (
        "Stack(\n"
        "    n = 3,\n"
        "    checkpoint = True,\n"
        "    layer = Dense(2, 2),                          # 6 parameters\n"
        ")         # Total: 18 parameters."
    )


@pytest.mark.exhaustive
def test_flat_rows_are_the_same_stack(key):
    named = lux.Stack(BLOCK, 3)
    for policy in (False, True, jax.checkpoint_policies.dots_saveable):
        flat = named.replace(flat_rows=7, checkpoint=policy)
        ps, st = lux.setup(key, named)
        rows, _ = lux.setup(key, flat)
        assert rows.rows.shape == (3, 21) and np.all(rows.rows[:, 18:] == 0)
        assert np.array_equal(flat.named(rows).layer_0.weight, ps.layer_0.weight)

        def loss(ps, layer, st=st):
            y, st = layer(X, ps, st)
            return jnp.sum(y**2), (y, st)

        expected, (y, after) = jax.grad(loss, has_aux=True)(ps, named)
        found, (y_flat, after_flat) = jax.grad(loss, has_aux=True)(rows, flat)
        assert np.array_equal(y, y_flat) and jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, after_flat))
        for name, mine in flat.named(found).layer_0.items():
            assert np.allclose(mine, expected.layer_0[name], rtol=1e-13)
    nothing = lux.Stack(jnp.tanh, 3, flat_rows=True)
    assert np.allclose(nothing(X, *lux.setup(key, nothing))[0], np.tanh(np.tanh(np.tanh(X))))
    half, st = lux.setup(key, flat, jnp.bfloat16)
    y, _ = flat(X.astype(jnp.bfloat16), half, lux.testmode(st))
    assert half.rows.dtype == y.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"Stack\.flat_rows: expected a whole number of at least 0, got -1"):
        named.replace(flat_rows=-1)


def test_rows_of_stacks_whose_paths_read_the_same_are_told_apart(key):
    """As they are where they are sharded."""
    rows = lux.Stack(lux.Dense(2, 2), 2, flat_rows=True)
    state = lux.TrainState.create(lux.Chain(**{"a.b": rows, "a": lux.Chain(b=rows)}), optax.sgd(0.1), key=key)
    sharded = lux.distributed.shard(state, lux.distributed.mesh(), "full")
    assert {name: len(x) for name, x in sharded.ps.rows.items()} == {"a.b.rows": 2, "('a', 'b', 'rows')": 2}
    assert lux.distributed.gather(sharded).ps.equals(state.ps)
