"""Derivatives of a tanh net by its inputs, and their gradients by its parameters: Laplacians and a fourth derivative.

Peers: the trace of `jax.hessian`, one second derivative after the other by `jax.jvp` of `jax.jvp`, and Taylor mode by
`jax.experimental.jet`. All are vmapped functions of one sample, as in a loss of a physics-informed net.
"""

import timing

timing.pin_allocator()

import functools  # noqa: E402
import sys  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import jet  # noqa: E402

import lux_sciml as lux  # noqa: E402

D = lux.derivatives


def net(tree, x):
    *hidden, last = tree.values()
    for layer in hidden:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return (x @ last["weight"] + last["bias"])[0]


def by_hessian(f, x):
    return jnp.trace(jax.hessian(f)(x))


def one_by_one(f, x):
    second = lambda v: jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (v,))[1]  # noqa: E731
    return jnp.sum(jax.vmap(second)(jnp.eye(x.size, dtype=x.dtype)))


def coefficient(f, x, v, order):
    return jet.jet(f, (x,), [[v, *[jnp.zeros_like(v)] * (order - 1)]])[1][-1]


def by_jet(f, x):
    return jnp.sum(jax.vmap(lambda v: coefficient(f, x, v, 2))(jnp.eye(x.size, dtype=x.dtype)))


def fourth_by_jet(f, x):
    return coefficient(f, x, jnp.zeros_like(x).at[0].set(1), 4)


LAPLACIANS = {"lux_sciml": D.laplacian, "jax.hessian": by_hessian, "jvp of jvp": one_by_one, "jet": by_jet}
FOURTH = {"lux_sciml": lambda f, x: D.partial(f, x, 0, 0, 0, 0), "jet": fourth_by_jet}
PEERS = tuple(LAPLACIANS)[1:]


def programs(operator, ps, x):
    """The mean square of what an operator gives at all samples, as a residual's, and its gradient."""

    def loss(ps, x):
        tree = ps.tree()
        return jnp.mean(jax.vmap(lambda x: operator(functools.partial(net, tree), x))(x) ** 2)

    return [jax.jit(f).lower(ps, x).compile() for f in (loss, jax.value_and_grad(loss))]


def main(width: int = 64, batch: int = 512):
    timing.machine()
    rows = []
    cases = [(n, "Laplacian", LAPLACIANS) for n in (2, 3, 10, 30)] + [(3, "fourth derivative", FOURTH)]
    for n, name, operators in cases:
        key, other = jax.random.split(jax.random.key(n))
        ps = lux.setup(key, lux.MLP(n, (width,) * 3, 1))[0].astype(jnp.float64)
        x = jax.random.normal(other, (batch, n))
        both = {peer: programs(operator, ps, x) for peer, operator in operators.items()}
        values = {peer: float(value(ps, x)) for peer, (value, _) in both.items()}
        ours = values["lux_sciml"]
        assert all(abs(value - ours) < 1e-9 * abs(ours) for value in values.values()), values
        for i, what in enumerate(("value", "gradient")):
            times = timing.interleaved({peer: functools.partial(p[i], ps, x) for peer, p in both.items()}, seconds=10)
            here, *flops = (both[peer][i].cost_analysis()["flops"] if peer in both else None for peer in LAPLACIANS)
            cells = [
                f"{times[peer] * 1e3:.3g}, {count / here:.2f}" if count else ""
                for peer, count in zip(PEERS, flops, strict=True)
            ]
            rows.append((name, n, what, times["lux_sciml"] * 1e3, *cells))
    head = (f"{peer} (ms, operations / ours)" for peer in PEERS)
    timing.table(("derivative", "inputs", "of it", "lux_sciml (ms)", *head), rows, "derivatives")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*map(int, sys.argv[1:]))
