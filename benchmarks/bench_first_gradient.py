"""The time from imported libraries to the first value and gradient: fresh processes, in turns, medians.

A neural ODE and a deep equilibrium, each written for diffrax or optimistix with Equinox as their pages do, and
here: as it is, and in a second process with `lux.compilation_cache`. That cache is open to the peers too, who have
callbacks in their programs, so that these are never kept. The equilibrium is solved by optimistix's plain iteration on
both sides, and by our default, Anderson acceleration, whose step is a larger program.
"""

import subprocess
import sys
import tempfile

import timing

TURNS = 5
IMPORTS = """
import sys, time
import diffrax, equinox as eqx, jax, jax.numpy as jnp, optimistix as optx
import lux_sciml as lux
start = time.perf_counter()
if len(sys.argv) > 1:
    lux.compilation_cache(sys.argv[1])
"""
END = """
jax.block_until_ready(first())
print(time.perf_counter() - start)
"""
PEER_ODE = """
mlp = eqx.nn.MLP(2, 2, 64, 2, jax.nn.softplus, key=jax.random.key(0))
ts, y0 = jnp.linspace(0.0, 10.0, 100), jnp.ones((32, 2))

def solve(mlp, y0):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: mlp(y)), diffrax.Tsit5(), ts[0], ts[-1], ts[1], y0,
        saveat=diffrax.SaveAt(ts=ts), stepsize_controller=diffrax.PIDController(1e-3, 1e-6),
    ).ys

@eqx.filter_jit
@eqx.filter_value_and_grad
def loss(mlp, y0):
    return jnp.mean(jax.vmap(lambda y0: solve(mlp, y0))(y0) ** 2)

first = lambda: loss(mlp, y0)
"""
OUR_ODE = """
ts, y0 = jnp.linspace(0.0, 10.0, 100), jnp.ones((32, 2))
net = lux.MLP(2, (64, 64), 2, jax.nn.softplus)
node = lux.NeuralODE(net, ts=ts, rtol=1e-3, atol=1e-6, dt0=0.1, batching="vmap", output="ys")
ps, st = lux.setup(jax.random.key(0), node)
loss = jax.jit(jax.value_and_grad(lambda ps, y0: jnp.mean(node(y0, ps, st)[0] ** 2)))
first = lambda: loss(ps, y0)
"""
PEER_DEQ = """
keys = jax.random.split(jax.random.key(0))
hidden, inner = eqx.nn.Linear(64, 64, use_bias=False, key=keys[0]), eqx.nn.Linear(64, 64, key=keys[1])
x = jnp.ones((32, 64))

def equilibrium(cell, x):
    hidden, inner = cell
    step = lambda z, injected: jnp.tanh(0.5 * hidden(z) + injected)
    return optx.fixed_point(step, optx.FixedPointIteration(1e-5, 1e-5), jnp.zeros(64), inner(x)).value

@eqx.filter_jit
@eqx.filter_value_and_grad
def loss(cell, x):
    return jnp.mean(jax.vmap(lambda x: equilibrium(cell, x))(x) ** 2)

first = lambda: loss((hidden, inner), x)
"""
OUR_DEQ = """
x = jnp.ones((32, 64))
cell = lux.Parallel(lambda a, b: jnp.tanh(0.5 * a + b), lux.Dense(64, 64, use_bias=False), lux.Dense(64, 64))
deq = lux.DeepEquilibrium(cell, 64)
ps, st = lux.setup(jax.random.key(0), deq)
loss = jax.jit(jax.value_and_grad(lambda ps, x: jnp.mean(deq(x, ps, st)[0] ** 2)))
first = lambda: loss(ps, x)
"""
OUR_PLAIN_DEQ = OUR_DEQ.replace("(cell, 64)", "(cell, 64, solver=optx.FixedPointIteration(1e-5, 1e-5))")

CASES = (
    ("neural ODE", PEER_ODE, OUR_ODE),
    ("deep equilibrium, plain iteration", PEER_DEQ, OUR_PLAIN_DEQ),
    ("deep equilibrium, Anderson here", PEER_DEQ, OUR_DEQ),
)


def seconds(code, *folder):
    command = [sys.executable, "-c", IMPORTS + code + END, *folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    timing.machine()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, peer, ours in CASES:
            runs = {"peer": (peer,), "peer, cache": (peer, folder)}
            runs |= {"lux_sciml": (ours,), "lux_sciml, cache": (ours, folder)}
            for run in runs.values():  # compiles the bytecode, and fills the cache
                seconds(*run)
            turns = [{key: seconds(*run) for key, run in runs.items()} for _ in range(TURNS)]
            medians = timing.medians({key: [turn[key] for turn in turns] for key in runs})
            rows.append((name, *map(float, medians.values()), medians["lux_sciml"] / medians["peer"]))
    timing.table(("seconds", *runs, "ours / peer"), rows, "first gradient")


if __name__ == "__main__":
    main()
