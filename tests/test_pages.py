"""The code of docs/ and CONTRIBUTING.md runs, in the order it stands there; of export.md and devices.md elsewhere."""

import ast
import inspect
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
import scipy.optimize

import lux_sciml as lux

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(page):
    namespace = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in BLOCK.findall((DOCS / page).read_text()):
            exec(compile(block, page, "exec"), namespace)
    return namespace


@pytest.mark.slow
def test_fitting():
    page = run("fitting.md")
    assert page["result"].value < 1e-6 and page["refined"].value < 1e-6  # of other points
    assert page["lower"].rate < 0.7 < page["upper"].rate and (page["low"] < page["high"]).all()
    assert abs(page["universal"].params.physics.rate - 0.8) < 2 * page["error"].rate < 0.5


@pytest.mark.exhaustive
def test_minimize():
    page = run("minimize.md")
    assert page["refined"].shape == (64, 2) and page["root"].success


@pytest.mark.exhaustive
def test_training(capsys):
    page = run("training.md")
    assert "all 320 steps made" in capsys.readouterr().out
    assert page["result"].history["loss"].shape == (160, 3) and page["result"].best.step.shape == (3,)
    assert page["state"].step == 320


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_inference():
    for name in ("numpyro", "blackjax", "arviz"):
        pytest.importorskip(name)
    page = run("inference.md")
    assert page["lower"] < page["fit"].params.rate < page["upper"] and page["boot"].failed == 0
    assert (page["lowest"] < page["low"]).all()  # of prediction, and of confidence
    assert page["hierarchical"].shape == (200, 3) and page["data"]["posterior"]["rate"].shape == (2, 200)


@pytest.mark.exhaustive
def test_symbolic():
    pytest.importorskip("sympy")
    page = run("symbolic.md")
    assert page["polynomial"].expand().as_poly().degree() == 3 and "tanh" in str(page["expression"])
    assert dict(page["found"].layer.outputs) == {"dx": ("x y",), "dy": ("x y",)}
    missing = page["refit"].params.missing
    assert abs(missing.dx["x y"] / -0.9 - 1) < 0.03 and abs(missing.dy["x y"] / 0.8 - 1) < 0.03
    errors = page["refit"].standard_errors().missing
    assert abs(missing.dx["x y"] + 0.9) < 3 * errors.dx["x y"] and abs(missing.dy["x y"] - 0.8) < 3 * errors.dy["x y"]


@pytest.mark.exhaustive
def test_adjoints():
    page = run("adjoints.md")
    assert 80 < page["steps"]("reversible") / page["steps"]("auto") < 140
    assert jnp.isfinite(page["grad"].data).all() and jnp.allclose(page["rest"], 1.0, atol=1e-5)
    assert page["st"]["layer_1"]["running_mean"].any()


@pytest.mark.exhaustive
def test_choosing(capsys):
    run("choosing.md")
    counts = [[float(x) for x in line.split()] for line in capsys.readouterr().out.splitlines()]
    ratios = [dopri8 / tsit5 for _, tsit5, dopri8 in counts]
    assert ratios[2] < 0.75 and all(0.9 < ratio < 1.2 for ratio in ratios[:2])


@pytest.mark.slow
def test_equilibrium():
    page = run("equilibrium.md")
    gradient = page["gradient"].data
    assert page["stats"]["converged"] and jnp.isfinite(gradient).all() and gradient.any()


@pytest.mark.exhaustive
def test_index():
    assert run("index.md")["result"].value < 1e-5


@pytest.mark.exhaustive
def test_start():
    page = run("start.md")
    assert page["result"].value < 1e-3
    assert jnp.abs(page["learned"][:, 0] + jnp.sin(page["angles"][:, 0])).max() < 0.1
    lower, upper = page["lower"].physics, page["upper"].physics
    assert lower.gravity < 1.0 < upper.gravity and lower.damping < 0.0 < upper.damping
    with jax.numpy_dtype_promotion("standard"):
        exact, _ = page["truth"].replace(ts=page["later"])(page["u0"], {}, {})
        assert jnp.all((page["low"] < exact) & (exact < page["high"])) and (page["high"] - page["low"]).max() < 0.3


def test_state(capsys):
    assert run("state.md")["y"].shape == (2,)
    assert "layer_1" in capsys.readouterr().out


def test_debugging(capsys):
    run("debugging.md")
    first, second = capsys.readouterr().out.splitlines()
    assert "`layer_1`" in first and "max_steps was reached" in second


@pytest.mark.exhaustive
def test_coming_from():
    page = run("coming_from.md")
    assert jnp.allclose(page["sol"].ys, page["same"].ys, atol=1e-3)
    assert abs(page["fit"].params.rate - 0.7) < 0.05 and page["state"].step == 10


WORDS = {  # no code
    *("(batch, features)", "(in, out)", "(N, H, W, C)", "(times, n)", "(t, y)", "events=", "trainable=", "setup"),
    *("y", "x0", "sol.ys"),
}


def here(page):
    """What stands as code in the last columns of a page's tables, in the order it stands there."""
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.endswith(" |")]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[-1]) if code not in WORDS]


@pytest.mark.exhaustive
def test_rows_of_coming_from():
    pytest.importorskip("torch", reason="of the page on PyTorch: `make test-extras` installs it")
    codes = here("coming_from.md")
    assert len(codes) > 50
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        given, others = names_of_coming_from()
        assert set(others) <= set(codes)
        for code in codes:
            runs = code.removeprefix("@").replace("(...)", "(1e-6, 1e-6)")
            runs = f"fit{runs}" if runs.startswith(".") else runs
            if keyword := re.match(r"(\w+)=[^=]", runs):
                assert keyword[1] in given["keywords"], code
                runs = f"dict({runs})"
            exec(compile(runs, code, "exec"), given | others.get(code, {}))


def names_of_coming_from():
    """What the rows name, and what some of them mean by these names."""
    import torch

    net = lux.Chain(lux.Dense(2, 2, jnp.tanh), lux.Dense(2, 2))
    ps, st = lux.setup(jax.random.key(0), net)
    dense = lux.setup(jax.random.key(0), lux.Dense(2, 2))
    ts, y0 = jnp.linspace(0.0, 1.0, 5), jnp.ones(2)
    given = {
        **dict(jax=jax, jnp=jnp, lux=lux, optax=optax, optimistix=optimistix, key=jax.random.key(1)),
        **dict(model=net, ps=ps, st=st, x=jnp.ones((3, 2)), layout=ps.layout, ts=ts, t=ts, y0=y0, func=lambda y: -y),
        **dict(loss=lambda ps: jnp.sum(ps.data**2), objective=lambda model, ps, st, batch: (0.0, st)),
        **dict(times=[0.5], effect=lambda t, y, ps: y + 1, condition=lambda t, y, ps: y[0], lower=-1.0, upper=1.0),
        **dict(cell=lambda z, x: z / 2 + x, shape=(2,), module=eqx.nn.Linear(2, 2, key=jax.random.key(0))),
        **dict(
            f=lambda ps: jnp.sum(ps.data**2),
            residual=lambda ps: ps.data,
            fit=lux.least_squares(lambda ps: jnp.sin(ps[jnp.array([0, 1, 1])]), y0),
        ),
        **dict(keywords={*inspect.signature(lux.NeuralODE).parameters, *inspect.signature(lux.minimize).parameters}),
        **dict(result=scipy.optimize.OptimizeResult(x=np.asarray(ps)), tensor=torch.ones(2), layer=lux.Dense(2, 2)),
    }
    others = {
        "lux.ComponentVector(x, layout)": dict(x=ps.data),
        'ps.at["bias"].set(b)': dict(ps=dense[0], b=y0),
        "lux.adapters.load_torch(layer, ps, st, state_dict)": dict(
            ps=dense[0], st=dense[1], state_dict=torch.nn.Linear(2, 2).state_dict()
        ),
        "sol, _ = lux.NeuralODE(lambda u: f(*u), ts, time_dependent=True)(y0, {}, {})": dict(f=lambda t, u: -u),
        "lux.root_find(f, ps)": dict(f=lambda ps: ps.data - 1),
        'lux.NeuralODE(func, t, output="ys")(y0, ps, st)': dict(ps={}, st={}),
    }
    return given, others


@pytest.mark.exhaustive
def test_adapters():
    for library in ("flax", "haiku", "torch", "pandas", "xarray"):
        pytest.importorskip(library, reason="of the page on adapters: `make test-extras` installs it")
    page = run("adapters.md")
    assert abs(page["difference"]).max() < 1e-5 and page["again"].equals(page["vector"])
    assert jnp.allclose(page["sol"].ys[0], page["same"].ys[0], rtol=1e-5)


@pytest.mark.exhaustive
def test_series():
    page = run("series.md")
    assert page["result"].value < 0.01 and page["fit"].success
    assert abs(page["fit"].params.physics.rate - 1.2) < 1e-3 and abs(page["fit"].params.physics.tau - 0.5) < 1e-3


def test_errors_that_are_explained_are_there():
    trees = [ast.parse(path.read_text()) for path in Path(lux.__file__).parent.rglob("*.py")]
    messages = [text(node) for tree in trees for node in ast.walk(tree)]
    explained = re.findall(r"^\| `([^`]*)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert len(explained) > 20
    assert [part for part in explained if not any(part in message for message in messages)] == []


def text(node):
    """A string, also one with values in it, without these."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_contributing():
    assert run("../CONTRIBUTING.md")["damped"].output == "ys"


def test_no_page_is_forgotten():
    tried = {f"{name.removeprefix('test_')}.md" for name in globals() if name.startswith("test_")}
    with_code = {page.name for page in DOCS.glob("*.md") if BLOCK.search(page.read_text())}
    elsewhere = {"export.md", "devices.md"}  # with processes of their own
    assert with_code <= tried | elsewhere | {"compilation.md"}  # which has a line


@pytest.mark.exhaustive
def test_jumps_events(capsys):
    page = run("jumps_events.md")
    assert "[0.4515 1.174  1.7519]" in capsys.readouterr().out
    assert page["sol"].stats["events"]["count"][0] == 3
