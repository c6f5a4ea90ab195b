"""The README's code runs, in the order it stands there; what pages link to and what the docstrings list exists."""

import re
from pathlib import Path

import jax
import pytest

import lux_sciml as lux

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_python_blocks_run(capsys):
    namespace = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(compile(block, "README.md", "exec"), namespace)
    printed = re.search(r"```\n(Chain\(.*?)```", README, re.DOTALL).group(1)
    assert capsys.readouterr().out == printed
    assert namespace["result"].value < 0.05


def headings(page):
    """The anchors of a page, as code hosts and MyST make them."""
    found = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
PAGES += [f"tutorials/{script.name}" for script in (ROOT / "tutorials").glob("*.py")]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_headings(page):
    there = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if "://" in link or link.startswith("mailto:") or not re.fullmatch(r"[\w/.#-]+", link):
            continue  # elsewhere, or code
        name, _, heading = link.partition("#")
        if page == "docs/tutorials.md":  # the site has the notebooks beside its pages
            there = ROOT
        target = there / name if name else ROOT / page
        if target.suffix != ".ipynb" or not target.with_suffix(".py").exists():  # a notebook is made of its script
            assert target.exists(), link
        assert not heading or heading in headings(target), link


def test_the_last_version_has_one_date():
    (version, date), *_ = re.findall(
        r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version}\n" in cited and f"date-released: {date}\n" in cited and version == lux.__version__


ROOMS = [
    lux,
    lux.nn,
    lux.diffeq,
    lux.equilibrium,
    lux.optimize,
    lux.parameters,
    lux.derivatives,
    lux.inference,
    lux.training,
    lux.adapters,
    lux.export,
    lux.discovery,
    lux.distributed,
]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_names_in_the_docstrings_of_packages_exist(room):
    names = re.findall(r"`(?:lux\.)?([\w.]+)`", room.__doc__)
    assert names and all(_leads_somewhere(room, name) or _leads_somewhere(lux, name) for name in names)


def _leads_somewhere(place, name):
    for part in name.split("."):
        place = getattr(place, part, None)
    return place is not None


@pytest.mark.parametrize("room", ROOMS[1:], ids=lambda room: room.__name__)
def test_packages_tell_what_they_have_beside_the_root(room):
    hidden = {name for name in dir(room) if not hasattr(lux, name)}
    assert all(f"`{name}`" in room.__doc__ for name in hidden)
