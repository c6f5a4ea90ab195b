"""Tutorials: each notebook is its script with outputs, and runs; here with few steps, by `make tutorials` with all.

What makes them long are constants in capitals at their top; a run here has others in their place.
"""

import ast
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "tutorials"
NAMES = sorted((path.stem for path in FOLDER.glob("*.py")), key=lambda name: (name != "first_steps", name))
SHORT = {
    "from_pytorch": {"EPOCHS": 1, "WIDTH": 4, "DRAWS": 5},
    "theophylline": {"ROUNDS": 1, "STEPS": 2, "MODELS": ["constant"]},
    "lynx_hare": {"STEPS": 3, "WIDTH": 2},
    "bayesian_neural_ode": {"CHAINS": 2, "WARMUP": 20, "DRAWS": 10},
    "first_steps": {"STEPS": 3, "MEMBERS": 2, "WIDTH": 4, "ODE_STEPS": 2},
    "flat_vector": {"STEPS": 3, "POINTS": 1},
    "spiral": {"WIDTH": 8, "WARM_UP": 3, "ADAM": 3, "LBFGS": 3, "LM": 3},
    "multiple_shooting": {"SINGLE": 2, "STEPS": 2, "SHOWN": 3},
    "digits_neural_ode": {"EPOCHS": 1},
    "digits_deq": {"EPOCHS": 1, "WIDTH": 32, "DEPTHS": [1, 2]},
    "gravitational_waves": {"POINTS": 20, "TRAINED": 5e3, "LATER": 1e4, "WIDTH": 4, "STEPS": 10},
    "many_devices": {"EPOCHS": 1, "WIDTH": 16, "BLOCKS": 2, "MEMBER_EPOCHS": 1},
    "neural_cde": {"EPOCHS": 1, "LONG_EPOCHS": 1, "POINTS": 61},
    "neural_operators": {
        "PAIRS": 100,
        "STEPS": 20,
        "WIDTH": 8,
        "MODES": 8,
        "DEEP_STEPS": 30,
        "HIDDEN": 16,
        "PRODUCTS": 8,
        "REPEAT": 1,
    },
    "export_and_serving": {"EPOCHS": 1, "WIDTH": 8, "CALLS": 3},
    "latent_ode": {"SERIES": 64, "STEPS": 2, "DRAWS": 2},
    "c_in_fortran": {"STEPS": 1, "WIDTH": 2, "CELLS": 100, "DAYS": 4},
    "energy": {"WIDTH": 4, "ADAM": 2, "BFGS": 1, "LONG": 5.0, "STATES": 256, "UNITS": 4, "STEPS": 2, "PATHS": 2},
    "flows": {
        "MOONS": 500,
        "WIDTH": 8,
        "LIKELIHOOD": 2,
        "MATCHING": 2,
        "MEMBERS": 2,
        "STAGES": 1,
        "STEPS": 2,
        "COMPONENTS": (2,),
    },
    "neural_sde": {"PATHS": 4, "WIDTH": 2, "BFGS": 1, "WINDOW": 6, "HIDDEN": 4, "STEPS": 3, "DRAWS": 8, "HORIZON": 2},
    "pinns": {
        "ADAM": 20,
        "QUASI_NEWTON": 20,
        "STEPS": 5,
        "POINTS": 64,
        "WARM_UP": 10,
        "SHOCK_STEPS": 4,
        "EVERY": 2,
        "SHOCK_POINTS": 256,
        "WIDTH": 8,
        "INVERSE_STEPS": 10,
    },
    "stiff_chemistry": {
        "POINTS": 10,
        "STEPS": 2,
        "NET_STEPS": 2,
        "HIDDEN": 2,
        "ADJOINTS": ("forward",),
        "REPEAT": 1,
    },
}


class Replace(ast.NodeTransformer):
    """Other values in assignments `NAME = value` and `A, B = 1, 2` at the top of a module."""

    def __init__(self, values):
        self.values, self.replaced = values, set()

    def visit_Module(self, node):
        node.body = [self.replace(each) for each in node.body]
        return ast.fix_missing_locations(node)

    def replace(self, node):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            (target,) = node.targets
            if isinstance(target, ast.Name):
                node.value = self.of(target, node.value)
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                node.value.elts = [self.of(*pair) for pair in zip(target.elts, node.value.elts, strict=True)]
        return node

    def of(self, target, value):
        if getattr(target, "id", None) not in self.values:
            return value
        self.replaced.add(target.id)
        return ast.parse(repr(self.values[target.id]), mode="eval").body


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_short(name, tmp_path, run_script):
    pytest.importorskip("jupytext")  # as a sign that what tutorials import is there
    replace = Replace(SHORT[name])
    source = ast.unparse(replace.visit(ast.parse((FOLDER / f"{name}.py").read_text())))
    assert replace.replaced == set(SHORT[name]), "constants that the tutorial does not have"
    (tmp_path / f"{name}.py").write_text(source)
    # nearly all the time goes into compiling
    run_script(tmp_path / f"{name}.py", FOLDER, MPLBACKEND="agg", JAX_DISABLE_MOST_OPTIMIZATIONS="true")


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_the_script(name):
    jupytext = pytest.importorskip("jupytext")
    script, notebook = (jupytext.read(FOLDER / f"{name}{suffix}") for suffix in (".py", ".ipynb"))
    assert [cell.source for cell in script.cells] == [cell.source for cell in notebook.cells], "run `make tutorials`"
    stored = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert all(cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code")
    outputs = [output for cell in stored["cells"] for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert not any(output.get("name") == "stderr" or output["output_type"] == "error" for output in outputs)
