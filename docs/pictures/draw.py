"""The pictures of the documentation, drawn anew: `python docs/pictures/draw.py`, with names of some or all."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

import lux_sciml as lux

HERE = Path(__file__).parent
lux.plot.style()
plt.rcParams["svg.hashsalt"] = "lux_sciml"  # the same picture has the same text


def pendulum():
    """The fit of docs/start.md, followed for twice as long as it was measured; and the force that it has learned."""
    page = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in re.findall(r"```python\n(.*?)```", (HERE.parent / "start.md").read_text(), re.DOTALL)[:2]:
            exec(block, page)
    later = jnp.linspace(0.0, 12.0, 200)
    ps, st = page["result"].params, page["st"]
    fitted, _ = page["node"].replace(ts=later)(page["u0"], ps, st)
    true, _ = page["truth"].replace(ts=later)(page["u0"], {}, {})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(later, true[:, 0], color="0.7", lw=4, label="truth")
    left.plot(later, fitted[:, 0], label="fit, then forecast")
    left.plot(page["ts"], page["data"][:, 0], "o", color="k", ms=3.5, label="measured")
    left.axvline(page["ts"][-1], color="0.5", lw=0.8, ls=":")
    left.set(xlabel="time", ylabel="angle")
    left.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    angles = jnp.linspace(-1.6, 1.6, 100)[:, None]
    right.plot(angles, -jnp.sin(angles), color="0.7", lw=4, label="-sin(angle)")
    right.plot(angles, page["force"](angles, ps, st)[0], label="what the net has learned")
    right.set(xlabel="angle", ylabel="force")
    right.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    figure.savefig(HERE / "pendulum.svg", metadata={"Date": None})
    plt.close(figure)


def growth():
    """How the time of a gradient grows, from what benchmarks/bench_gradient_cost.py measured."""
    result = json.loads((HERE.parent.parent / "benchmarks" / "results" / "bench_gradient_cost.json").read_text())
    (table,) = result["tables"]
    lines = {"lux_sciml": "gradient (ms)", **{name: f"{name} (ms)" for name in ("Equinox and diffrax", "torchdiffeq")}}
    growing = {
        "batch": "samples",
        "state": "size of the state",
        "horizon": "horizon, {} to {} steps",
        "layers": "layers",
    }
    figure, axes = plt.subplots(1, len(growing), figsize=(11, 3.0), sharey=True)
    for ax, (name, label) in zip(axes, growing.items(), strict=True):
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"] if row[0] == name]
        for line, column in lines.items():
            ax.loglog([row["to"] for row in rows], [row[column] for row in rows], "o-", label=line)
        ax.set(xlabel=label.format(rows[0]["steps"], rows[-1]["steps"]))
        ax.set_xticks([row["to"] for row in rows], [f"{row['to']:g}" for row in rows])
        ax.minorticks_off()
    axes[0].set(ylabel="value and gradient (ms)")
    axes[0].legend(fontsize="small")
    figure.savefig(HERE / "growth.svg", metadata={"Date": None})
    plt.close(figure)


PICTURES = {"pendulum": pendulum, "growth": growth}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
