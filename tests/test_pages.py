"""The code of docs/ and CONTRIBUTING.md runs, in the order it stands there; that of docs/export.md elsewhere."""

import re
from pathlib import Path

import jax

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(page):
    namespace = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in BLOCK.findall((DOCS / page).read_text()):
            exec(compile(block, page, "exec"), namespace)
    return namespace


def test_fitting():
    page = run("fitting.md")
    assert page["result"].value < 1e-3 and page["refined"].value < page["result"].value
    assert page["lower"].rate < 0.7 < page["upper"].rate and (page["low"] < page["high"]).all()


def test_minimize():
    page = run("minimize.md")
    assert page["refined"].shape == (64, 2) and page["root"].success


def test_training(capsys):
    page = run("training.md")
    assert "all 320 steps made" in capsys.readouterr().out
    assert page["result"].history["loss"].shape == (160, 3) and page["result"].best.step.shape == (3,)
    assert page["state"].step == 320


def test_contributing():
    assert run("../CONTRIBUTING.md")["damped"].output == "ys"


def test_no_page_is_forgotten():
    tried = {f"{name.removeprefix('test_')}.md" for name in globals() if name.startswith("test_")}
    with_code = {page.name for page in DOCS.glob("*.md") if BLOCK.search(page.read_text())}
    assert with_code <= tried | {"export.md", "compilation.md"}  # the one has a test of its own, the other only a line
