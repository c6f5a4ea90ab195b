"""The pictures of the documentation, drawn anew: `python docs/pictures/draw.py`."""

import contextlib
import io
import re
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


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
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(later, true[:, 0], color="0.7", lw=4, label="truth")
    left.plot(later, fitted[:, 0], color="C0", label="fit, then forecast")
    left.plot(page["ts"], page["data"][:, 0], "o", color="C3", ms=4, label="measured")
    left.axvline(page["ts"][-1], color="0.5", lw=0.8, ls=":")
    left.set(xlabel="time", ylabel="angle")
    left.legend(fontsize="small", loc="upper right")
    angles = jnp.linspace(-1.6, 1.6, 100)[:, None]
    right.plot(angles, -jnp.sin(angles), color="0.7", lw=4, label="-sin(angle)")
    right.plot(angles, page["force"](angles, ps, st)[0], color="C0", label="what the net has learned")
    right.set(xlabel="angle", ylabel="force")
    right.legend(fontsize="small")
    figure.savefig(HERE / "pendulum.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    pendulum()
