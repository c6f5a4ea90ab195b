"""A solve with k jumps against the k + 1 solves of its pieces, one after the other in one program; what it compiles.

The pieces are solved by the same layer without jumps, which saves the times of its piece. Both start from the same
weights; outputs and gradients agree.
"""

import timing

timing.pin_allocator()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import lux_sciml as lux  # noqa: E402

PIECE, SAVED = 1.0, 10  # the length of a piece, and the times that are saved in it


def programs(width: int, k: int, batch: int):
    """The sum of squares of all that is saved, by one solve and by those of the pieces; weights and start."""
    net = lux.Chain(lux.Dense(2, width, jnp.tanh), lux.Dense(width, 2))
    ts = np.linspace(0.0, PIECE * (k + 1), SAVED * (k + 1) + 1)
    options = {"output": "ys", "batching": "vmap" if batch else "joint"}
    jumps = lux.Jumps(PIECE * np.arange(1, k + 1), lambda t, y, ps: y + 1.0, saves="left")
    whole = lux.NeuralODE(net, ts=ts, jumps=jumps, **options)
    ps, st = lux.setup(jax.random.key(0), whole)
    pieces = [lux.NeuralODE(net, ts=ts[SAVED * i : SAVED * (i + 1) + 1], **options) for i in range(k + 1)]
    y0 = jax.random.normal(jax.random.key(1), (batch, 2) if batch else (2,))

    def by_jumps(ps, y0):
        return jnp.sum(whole(y0, ps, st)[0] ** 2)

    def by_pieces(ps, y):
        total = jnp.sum(y**2)
        for i, piece in enumerate(pieces):
            ys = piece(y, ps, st)[0]
            ys = jnp.moveaxis(ys, 1, 0) if batch else ys
            total, y = total + jnp.sum(ys[1:] ** 2), ys[-1] + (i < k)
        return total

    return by_jumps, by_pieces, ps, y0


def main():
    timing.machine()
    rows = []
    for width, k, batch in ((64, 4, 0), (64, 4, 16)):
        by_jumps, by_pieces, *at = programs(width, k, batch)
        np.testing.assert_allclose(by_jumps(*at), by_pieces(*at), rtol=1e-4)
        for kind in ("forward", "gradient"):
            fs = [jax.jit(f if kind == "forward" else jax.value_and_grad(f)) for f in (by_jumps, by_pieces)]
            calls = {name: lambda f=f, at=at: f(*at) for name, f in zip(("lux, jumps", "pieces"), fs, strict=True)}
            times = timing.interleaved(calls, turns=40, seconds=4.0)
            makes = {name: lambda call=call: call for name, call in calls.items()}
            firsts = timing.first_calls(makes, turns=1)
            ratio = times["lux, jumps"] / times["pieces"]
            both = times["lux, jumps"] * 1e3, times["pieces"] * 1e3, ratio, *firsts.values()
            rows.append((width, k, batch or "", kind, *both))
    head = ("width", "jumps", "samples", "", "one solve (ms)", "pieces (ms)", "ratio", "first call (s)", "pieces (s)")
    timing.table(head, rows, "jumps")


if __name__ == "__main__":
    main()
