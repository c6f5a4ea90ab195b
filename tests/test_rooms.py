"""The package's rooms: imports only downward, no circles, lazy imports included; what the root namespace holds."""

import ast
import graphlib
import inspect
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lux_sciml as lux

PACKAGE = Path(lux.__file__).parent
CONTRACTS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LAYERS = [layer.split(" : ") for layer in reversed(CONTRACTS[0]["layers"])]  # each imports only from those before it


def module_of(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in PACKAGE.rglob("*.py")}


def imports(module):
    """The modules of the package that a file imports anywhere in it, functions included."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split(".") if package else []
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{base}.{alias.name}" if base else alias.name
                found.add(deeper if deeper in MODULES else base)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not any(name.split(".")[0] == "lux_sciml" for name in names), f"{module} imports by full name"
    return found - {module}


def test_rooms_import_only_from_rooms_above():
    place = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}
    wrong = [
        f"{module} imports {imported}"
        for module in filter(None, MODULES)
        for imported in imports(module)
        if imported.split(".")[0] != module.split(".")[0]
        and place[imported.split(".")[0]] >= place[module.split(".")[0]]
    ]
    assert not wrong


def test_files_form_no_circle():
    files = {module: imports(module) for module in MODULES if MODULES[module].name != "__init__.py"}
    list(graphlib.TopologicalSorter(files).static_order())  # raises CycleError, which names the files


def test_every_room_is_listed():
    assert {module.split(".")[0] for module in MODULES if module} == set(itertools.chain(*LAYERS))


def test_names_of_the_root():
    assert len(lux.__all__) == len(set(lux.__all__)) and all(hasattr(lux, name) for name in lux.__all__)
    for room in ("components", "core", "nn", "parameters", "diffeq", "compilation"):
        assert set(getattr(lux, room).__all__) <= set(lux.__all__)
    for room, names in lux._LATER.items():
        assert not names or set(names) == set(getattr(lux, room).__all__)
    assert {*lux.__all__, "__version__"} == set(dir(lux))
    with pytest.raises(AttributeError, match="no attribute 'minimise'"):
        lux.minimise  # noqa: B018
    assert lux.__version__.count(".") == 2
    assert callable(lux.plot.plot) and callable(lux.testing.check_layer)


def rooms(place=lux):
    """The modules among the public names, and those among theirs."""
    for module in filter(inspect.ismodule, (getattr(place, name) for name in dir(place))):
        yield module
        yield from rooms(module)


def test_what_is_public():
    """Completion shows what a module has for users, and nothing that it imports for itself."""
    public = {f"{room.__name__}.{name}": getattr(room, name) for room in [lux, *rooms()] for name in dir(room)}
    assert {"lux_sciml.nn.apply_rotary", "lux_sciml.diffeq.Series", "lux_sciml.plot.COLORS"} < public.keys()
    modules = {value for value in public.values() if inspect.ismodule(value)}
    assert modules == set(rooms()) and all(module.__name__.startswith("lux_sciml.") for module in modules)
    values = [value for value in public.values() if not inspect.ismodule(value)]
    assert not [value for value in values if not getattr(value, "__module__", "lux_sciml").startswith("lux_sciml")]
    assert not {"lux_sciml.components.nest", "lux_sciml.nn.attention", "lux_sciml.losses.Series"} & public.keys()


def test_every_public_name_has_an_example():
    there = {f"{room.__name__}.{name}": getattr(room, name) for room in rooms() for name in dir(room)}
    ours = {name: x for name, x in there.items() if hasattr(x, "__module__")}  # no module and no constant
    assert len(ours) > 300
    assert [name for name, x in ours.items() if ">>>" not in (x.__doc__ or "")] == []


@pytest.mark.slow
@pytest.mark.parametrize("module", ["scipy.optimize", "tqdm", "matplotlib", "pytest", "hypothesis"])
def test_what_is_imported_only_when_used(module):
    """Without what the core dependencies import themselves."""
    code = f"""
import sys, jax, diffrax, optimistix, optax
before = set(sys.modules)
import lux_sciml
assert {module!r} in before or {module!r} not in sys.modules, {module!r}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
