"""Which entries of a state a call updates, seen through the transforms around it."""

import jax
import jax.numpy as jnp
import pytest

from lux_sciml.core.frozen import kept_entries, updated_entries

STATE = {"a": jnp.ones(2, "float32"), "inner": {"b": jnp.zeros((), "float32")}}


@jax.custom_jvp
def with_jvp(st):
    return dict(st)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_vjp(st):
    return dict(st)


with_vjp.defvjp(lambda st: (with_vjp(st), None), lambda _, ct: (ct,))


@pytest.mark.parametrize(
    "call",
    [
        lambda st: st,
        lambda st: {**st},
        jax.jit(lambda st: {"a": st["a"], "inner": st["inner"]}),
        jax.checkpoint(lambda st: {"a": st["a"], "inner": {"b": st["inner"]["b"]}}),
        jax.jit(jax.jit(lambda st: st)),
        with_jvp,
        with_vjp,
    ],
    ids=["same", "copy", "jit", "checkpoint", "jit of jit", "custom_jvp", "custom_vjp"],
)
def test_passed_through(call):
    assert updated_entries(call, STATE) == []


@pytest.mark.parametrize(
    ("call", "updated"),
    [
        (lambda st: {**st, "a": st["a"] + 1}, ["a"]),
        (jax.jit(lambda st: {**st, "inner": {"b": st["inner"]["b"] * 2}}), ["inner.b"]),
        (lambda st: {**st, "a": st["a"][::-1]}, ["a"]),
        (lambda st: {"a": jnp.ones(2, "float32"), "inner": {"b": st["a"][0]}}, ["a", "inner.b"]),
    ],
    ids=["computed", "inside jit", "permuted", "constant"],
)
def test_updated(call, updated):
    assert updated_entries(call, STATE) == updated


def test_another_structure_is_refused():
    with pytest.raises(ValueError, match="`a`"):
        updated_entries(lambda st: {"inner": st["inner"]}, STATE)


def test_kept_entries_beside_an_output_and_other_arguments():
    def call(x, ps, st):
        return {"y": x * ps["w"] + st["a"]}, {"a": st["a"], "inner": {"b": st["inner"]["b"] + 1}}

    x, ps = jax.ShapeDtypeStruct((3, 2), "float32"), {"w": jax.ShapeDtypeStruct((2,), "float32")}
    y, kept = kept_entries(call, x, ps, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), STATE))
    assert y["y"].shape == (3, 2) and kept == [True, False]
    assert kept_entries(jax.jit(call), jnp.ones((3, 2), "float32"), {"w": jnp.ones(2, "float32")}, STATE)[1] == [
        True,
        False,
    ]
