"""What the files in C and in NumPy are tried with: samples, functions of the operations they have, and solves."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import lux_sciml as lux


def samples(n, *shape, dtype=np.float32):
    return np.random.default_rng(n).normal(size=(n, *shape)).astype(dtype)


def elementwise(x):
    """Of `(n, 5)`."""
    bounded, positive = jnp.clip(x, -0.5, 0.9), jnp.abs(x) + 0.5
    yield jnp.exp(bounded) + jnp.expm1(bounded) - jnp.log(positive) * jnp.log1p(positive) + jnp.exp2(x)
    yield jnp.sin(x) * jnp.cos(x) / (1 + jnp.tan(bounded) ** 2) + jnp.arctan2(x, positive) - jnp.arctan(x)
    yield jnp.sinh(bounded) - jnp.cosh(bounded) + jnp.arcsinh(x) + jnp.arccosh(1 + positive)
    yield jnp.arcsin(bounded * 0.9) + jnp.arccos(bounded * 0.9) + jnp.arctanh(bounded)
    yield jnp.sqrt(positive) + jax.lax.rsqrt(positive) + jnp.cbrt(positive) + positive**1.3 + x**5 + positive**-3
    yield jax.lax.erf(x) + jax.lax.erfc(x) + jax.nn.sigmoid(x) + jax.nn.softplus(x) + jax.nn.elu(x)
    yield jnp.maximum(x, 0.1) - jnp.minimum(x, -x) + jnp.sign(x) + jnp.floor(x) + jnp.ceil(x) + jnp.round(x)
    chosen = jnp.where((x > 0.3) | ~(x >= -0.2) & (x != 0), x, -2 * x)
    yield chosen + jnp.mod(x, 0.7) + jnp.isfinite(x).astype(x.dtype)


def moving(x):
    """Of `(n, 5)`."""
    yield jax.nn.softmax(x, -1) * jax.nn.logsumexp(x, -1, keepdims=True)
    yield x.max(-1) + x.min(-1) + x.prod(-1) + jnp.var(x, -1)
    yield jnp.where((x > 0).all(-1) | (x > 1).any(-1), x[:, 0], 0), jnp.argmax(x, -1).astype(x.dtype)
    yield jnp.cumsum(x, -1) + jax.lax.cummax(x, 1, reverse=True)
    yield jnp.pad(x, ((0, 0), (1, 2)), constant_values=2.0)[:, ::2], jnp.concatenate([x[:, :1], 2 * x[:, ::-1]], 1)
    yield jnp.tile(x, (1, 2)), jnp.stack(jnp.unstack(x, axis=1)[::2], axis=1), jnp.repeat(x, 2, 1)
    yield jnp.einsum("bi,bj->bij", x, x), jnp.einsum("bij,bkj->bik", x[:, None] * x[..., None], x[..., None] - 1)
    yield x.reshape(-1, 5, 1).transpose(0, 2, 1).reshape(-1, 5) @ jnp.arange(15.0, dtype="float32").reshape(3, 5).T
    yield jnp.take(x, jnp.array([4, 1, 1]), axis=1), x.at[:, 1].set(0.5).at[:, jnp.array([0, 2])].add(x[:, 3:])
    system = 3 * jnp.eye(5, dtype=x.dtype) + jnp.sin(x[:, :, None] - 2 * x[:, None])
    yield jnp.linalg.solve(system, x[..., None]), jnp.argsort((9 * x).astype("int32"), axis=1).astype(x.dtype)
    index = (x[:, 0] > 0).astype("int32") + 1
    yield (
        jnp.take_along_axis(x, index[:, None], 1),
        jax.vmap(lambda x, i: jax.lax.dynamic_slice(x, (i,), (3,)))(x, index),
    )


def of_types(i, x):
    """Of bytes and numbers, both `(n, 5)`: what C computes in wider types, NumPy in others, and both out of range."""
    yield (i + 200).astype("float32"), (~i).astype("float32"), (-i).astype("float32"), (i**3).astype("float32")
    yield jnp.where(i - i[:, ::-1] > 100, x, 0), i // 3, jnp.bitwise_and.reduce(i, 1), jnp.bitwise_or.reduce(i, 1)
    yield [(jnp.log(x) * 1e12).astype(kind) for kind in ("int8", "uint8", "int32", "uint32", "int64")]
    whole = i.astype("int32")
    yield jnp.cumsum(whole, 1), jax.lax.pow(x, whole % 3), jax.lax.round(x / 2), (whole - 100) // 7
    signed = i.astype("int8")
    yield jnp.einsum("bi,bi->b", signed, signed, preferred_element_type="int32")
    yield x.at[:, jnp.array([1, 9])].get(mode="fill", fill_value=0.5), jnp.take(i, jnp.array([1, 9]), axis=1)
    yield jnp.max(x > 0, 1).astype("int32"), jnp.maximum(x > 0, x > 1).astype("int32")
    yield jnp.take(x > 0, jnp.array([1, 9]), axis=1).astype("int32")


def bytes_of(n):
    """Of `(n, 5)`."""
    return np.random.default_rng(n).integers(0, 256, (n, 5)).astype(np.uint8)


def loops_and_branches(x):
    """Of a vector, whose elements decide how long the loop is."""
    y, steps = jax.lax.while_loop(
        lambda c: (jnp.sum(c[0] ** 2) < 20) & (c[1] < 9), lambda c: (1.2 * c[0] + jnp.tanh(x), c[1] + 1), (x, 0)
    )
    z = jax.lax.switch(steps // 3, [jnp.sin, jnp.cos, lambda y: 3 * y], y)
    return z, jax.lax.cond(z[0] > 0, lambda: x, lambda: -x)


def solves():
    """By fixed steps, by adaptive ones, and an equilibrium, all of three features."""
    net = lux.Chain(lux.Dense(3, 6, jnp.tanh), lux.Dense(6, 3))
    cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(3, 3, use_bias=False), lux.Dense(3, 3))
    ts, fixed = jnp.linspace(0.0, 1.0, 4), diffrax.ConstantStepSize()
    return (
        lux.NeuralODE(net, ts=ts, stepsize_controller=fixed, dt0=0.1, output="ys"),
        lux.NeuralODE(net, ts=ts, output="final"),
        lux.DeepEquilibrium(cell, shape=3),
    )
