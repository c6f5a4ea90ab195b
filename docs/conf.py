"""The site of the documentation: `make docs` builds it into docs/_build/html."""

import inspect
import operator
import re
from pathlib import Path

import lux_sciml

project = "lux_sciml"
author = "The lux_sciml developers"
project_copyright = "2026, the lux_sciml developers"
release = lux_sciml.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
templates_path = ["templates"]
default_role = "code"  # docstrings mark code by single backticks

autodoc_typehints = "none"  # signatures are read by people: the docstrings say shapes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of other libraries are not in this markup
autosummary_generate = True
python_maximum_signature_line_length = 100

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tutorials come with what `make tutorials` has run
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "lux_sciml"
html_static_path = []
html_theme_options = {"navigation_with_keys": True}

ROOMS = {
    "components": "Vectors with names",
    "core": "The contract of layers",
    "nn": "Layers",
    "parameters": "What is done to parameters",
    "constraints": "Constraints",
    "initializers": "Initializers",
    "activations": "Activations",
    "losses": "Losses",
    "derivatives": "Derivatives",
    "optimize": "Fitting",
    "diffeq": "Differential equations",
    "equilibrium": "Equilibria",
    "inference": "Inference",
    "training": "Training",
    "adapters": "Other libraries",
    "adapters.numpyro": "NumPyro",
    "adapters.blackjax": "BlackJAX",
    "adapters.arviz": "ArviZ",
    "distributed": "Many devices",
    "export": "Export",
    "discovery": "Equations from layers",
    "plot": "Plots",
    "testing": "Testing",
    "compilation": "Compilation",
}


def copy_tutorials(folder):
    """The notebooks with what `make tutorials` has run, and their links from here on."""
    folder.mkdir(exist_ok=True)
    for notebook in sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb")):
        text, page = notebook.read_text().replace("](../docs/", "](../"), folder / notebook.name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def with_plurals(app, what, name, obj, options, lines):
    """`Layer`s is code and a letter."""
    lines[:] = [re.sub(r"(`[^`]+`)(?=[a-z])", r"\1\\ ", line) for line in lines]


def is_no_member(app, what, name, obj, skip, options):
    """Options of a class are in its docstring: a function that is a default is none of its methods."""
    return True if "." not in getattr(obj, "__qualname__", ".") or type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    """Bring the tutorials, and a page for each room with all its public names; autosummary makes a page of each."""
    app.connect("autodoc-process-docstring", with_plurals)
    app.connect("autodoc-skip-member", is_no_member)
    copy_tutorials(Path(app.srcdir) / "tutorials")
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    for path, title in ROOMS.items():
        room = operator.attrgetter(path)(lux_sciml)
        lines = [title, "=" * len(title), "", f".. currentmodule:: {room.__name__}", ""]
        lines += [inspect.getdoc(room) or "", "", ".. autosummary::", "   :toctree: names", "   :nosignatures:", ""]
        names = sorted((name for name in dir(room) if not inspect.ismodule(getattr(room, name))), key=str.lower)
        text = "\n".join([*lines, *(f"   {name}" for name in names)]) + "\n"
        page = folder / f"{path.replace('.', '_')}.rst"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
