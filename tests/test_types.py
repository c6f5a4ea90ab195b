"""Types: the checker passes on a user's script and finds the mistakes planted in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lux_sciml

SCRIPT = """
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import lux_sciml as lux
from lux_sciml import ComponentVector

model = lux.Chain(lambda u: u**3, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 2))
node = lux.NeuralODE(lambda u: -u, ts=[0.0, 1.0])
node = node.replace(model=model, rtol=1e-5)
conv = lux.Conv(1, 8, (3, 3), stride=2)
ps, st = lux.setup(jax.random.key(0), node)


class Decay(lux.Layer):
    rate: float = 1.0

    def forward(self, u, ps, st):
        return -self.rate * u, st


def loss(ps: ComponentVector) -> jax.Array:
    sol, _ = node(jnp.ones(2), ps, st)
    return jnp.sum(sol.ys**2)


smaller: lux.Dense = lux.Dense(2, 3).replace(use_bias=False)
shifted: ComponentVector = ps.replace(layer_1={"weight": 0.0}).at["layer_2"].multiply(0.5)
gradient: ComponentVector = jax.grad(loss)(shifted)
result = lux.minimize(loss, ps, method="L-BFGS-B")
assert_type(lux.setup(jax.random.key(0), node), tuple[ComponentVector, dict[str, Any]])
assert_type(lux.setup(jax.random.key(0), node, flat=False)[0], dict[str, Any])
assert_type(node(jnp.ones(2), ps, st), tuple[Any, dict[str, Any]])
assert_type(node.replace(ts=jnp.linspace(0.0, 1.0, 5)), lux.NeuralODE)
assert_type(ps.at["layer_1"].set(0.0), ComponentVector)
assert_type(ps.astype("float32"), ComponentVector)
assert_type(ps == shifted, jax.Array)
assert_type(ps @ shifted, jax.Array)
assert_type(result, lux.MinimizeResult[ComponentVector])
print(jnp.sum((ps - shifted) ** 2), lux.testmode(st)["layer_1"])
print(result.value + 1.0, result.params.layer_1.weight, ps.layer_1.weight, st["layer_1"], ps.size + 1)
MISTAKE
"""
MISTAKES = (
    'lux.Dense(2, "3")',  # a size that is no number
    'lux.Dense(2, 3, "tanh")',  # an activation that is no function
    "lux.NeuralODE(model, rtoll=1e-6)",  # an unknown option
    'lux.NeuralODE(model, solver="Tsit5")',  # the name of a solver
    "lux.NeuralODE(model, ts=1.0)",  # one time
    "smaller.in_feature",  # replace keeps the class, which has no such field
    'ps.layer_1.weight = 0.0; ps.at["layer_1"].sett(0.0); st.size',  # parameters are a vector, the state is a dict
    "result.parms",  # the result of minimize has a type
)


def errors_of(folder: Path, mistakes: str) -> list[int]:
    """The lines of the script on which the checker finds errors."""
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("MISTAKE", mistakes))
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(Path(lux_sciml.__file__).parent.parent)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(script)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    found = json.loads(out.stdout)["generalDiagnostics"]
    return sorted({d["range"]["start"]["line"] for d in found if d["severity"] == "error"})


@pytest.mark.slow
def test_a_users_script_passes_and_its_mistakes_are_found(tmp_path):
    start = SCRIPT[: SCRIPT.index("MISTAKE")].count("\n")
    assert errors_of(tmp_path, "\n".join(MISTAKES)) == list(range(start, start + len(MISTAKES)))
