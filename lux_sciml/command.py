"""The command `lux-sciml`: what a file of ours holds, and parameters from a file exported with their model."""

import argparse
import hashlib
import importlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from ._tree import describe, is_random_key
from .components import ComponentVector, load, safetensors
from .components.files import STRUCTURE
from .components.nodes import DICT, LIST, NONE, TUPLE, Path as ComponentPath, path_string
from .core import Layer, setup, testmode
from .export import read_metadata
from .export.save import WRITERS

_TYPES = (
    "float32", "float64", "float16", "bfloat16", "complex64", "complex128", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
_FORMATS = {writer.__name__: suffix for suffix, writer in WRITERS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; the exit code.

    * `info FILE`: shapes, types, numbers of elements, versions and checksum, of a file that `lux.save`, `lux.export` or
      one of its formats wrote;
    * `export PARAMS --model module:name --to FORMAT --input SHAPE`: the layer of a Python module with the parameters of
      a file, in test mode, for other programs.

    >>> import os, tempfile, lux_sciml as lux
    >>> path = os.path.join(tempfile.mkdtemp(), "ps.safetensors")
    >>> lux.save(path, lux.ComponentVector(a=1, b=[2, 3]))
    >>> main(["info", path])  # doctest: +ELLIPSIS
    file      ...ps.safetensors
    bytes     ...
    sha256    ...
    format    parameters and other trees (safetensors)
    elements  3 (3 float32)
    arrays    ...
    0
    """
    given = _parser().parse_args(arguments)
    try:
        if given.command == "export":
            print(_export(given))
        else:
            about = describe_file(given.file)
            print(json.dumps(about, indent=2) if given.json else _text(about))
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"lux-sciml: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lux-sciml", description="Files of lux_sciml: what is in them, and exports.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what a file that lux.save or lux.export wrote holds")
    info.add_argument("file", type=Path)
    info.add_argument("--json", action="store_true", help="as JSON")
    about = "a model in test mode with its parameters from a file, for other programs"
    export = commands.add_parser("export", help=about, description=about)
    export.add_argument("params", type=Path, help="the file: parameters, or a dict of `ps` and `st`, saved by lux.save")
    export.add_argument(
        "--model", required=True, metavar="MODULE[:NAME]",
        help="the layer, such as my_package.nets:net, of a module in the working folder or an installed one; without a "
        "name the one called `model`",
    )  # fmt: skip
    export.add_argument("--to", required=True, choices=_FORMATS, help="the format")
    export.add_argument(
        "--input", required=True, action="append", metavar="SHAPE",
        help="the shape of the input, with names for open sizes, such as batch,4; again for further inputs",
    )  # fmt: skip
    export.add_argument(
        "--dtype", default="float32", choices=_TYPES, metavar="TYPE", help="the type of the inputs, float32 by default"
    )
    export.add_argument("--parameters", default="constant", choices=["constant", "input"], help="how they are exported")
    export.add_argument("--output", type=Path, help="by default beside the parameters, by the suffix of the format")
    return parser


# --- info -------------------------------------------------------------------------------------------------------


def describe_file(path: Path) -> dict[str, Any]:
    """What is known of a file, for JSON. Raises `ValueError` for one that is not of ours, or was changed."""
    about: dict[str, Any] = {"file": str(path)}
    if path.is_dir():
        document = read_metadata(path)
        return about | _of_folder(path) | _of_export(document)
    with open(path, "rb") as file:
        about |= {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    with open(path, "rb") as file:
        start = file.read(9)
        file.seek(0)
        if start[:2] == b"PK":
            arrays = [(path_string(leaf.path), leaf.shape, leaf.dtype) for leaf in load(path).layout.leaves]
            return about | {"format": "parameters (npz)"} | _of_arrays(arrays)
        if start[8:] == b"{":
            try:
                header = safetensors.read_header(file)
                with safetensors.reading(file, header):  # compares the checksum
                    pass
            except ValueError as error:
                raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
            arrays = [(name, shape, dtype) for name, (dtype, shape, *_) in header.entries.items()]
            about |= {"format": "parameters and other trees (safetensors)"} | _of_arrays(arrays)
            return about | _of_structure(json.loads(header.metadata.get(STRUCTURE, "{}")))
    return about | _of_export(read_metadata(path))


def _of_folder(path: Path) -> dict[str, Any]:
    """Of a folder, the checksum of all names in it, in their order, each with its file's own."""
    size, digest = 0, hashlib.sha256()
    for found in sorted(found for found in path.rglob("*") if found.is_file()):
        with open(found, "rb") as file:
            size += os.fstat(file.fileno()).st_size
            digest.update(
                f"{found.relative_to(path).as_posix()}\0".encode() + hashlib.file_digest(file, "sha256").digest()
            )
    return {"bytes": size, "sha256": digest.hexdigest()}


def _of_arrays(arrays: list[tuple[str, tuple[int, ...], Any]]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for _, shape, dtype in arrays:
        counts[np.dtype(dtype).name] += math.prod(shape)
    described = [{"name": name, "shape": list(shape), "dtype": np.dtype(dtype).name} for name, shape, dtype in arrays]
    return {"elements": dict(counts), "arrays": described}


def _of_export(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters", {})
    about = {key: value for key, value in document.items() if key not in ("lux_sciml_export", "parameters", "sha256")}
    about["parameters"] = {key: value for key, value in parameters.items() if key != "layout"}
    layout = parameters.get("layout")
    return about | ({} if layout is None else {"layout": _components(layout["tree"], ())})


def _of_structure(document: dict[str, Any]) -> dict[str, Any]:
    """Of the tree in a file of `lux.save`, the version, and the components of its vectors by their paths."""
    found: list[dict[str, Any]] = []

    def walk(node: Any, path: ComponentPath) -> None:
        if "vector" in node:
            found.extend(_components(node["layout"]["tree"], path))
        for key, child in _children(node):
            walk(child, (*path, key))

    walk(document.get("tree", {}), ())
    versions = {name: version for name, version in document.items() if name != "tree"}
    return {"versions": versions} | ({"layout": found} if found else {})


def _components(node: Any, path: ComponentPath) -> list[dict[str, Any]]:
    """The arrays in a layout's document."""
    if "array" in node:
        return [{"name": path_string(path), "shape": node["array"], "dtype": node["dtype"]}]
    return [one for key, child in _children(node) for one in _components(child, (*path, key))]


def _children(node: dict[str, Any]) -> list[Any]:
    """The named children of a container in a document, of whatever kind."""
    return next((node[kind] for kind in (DICT, LIST, TUPLE, NONE, "children") if kind in node), [])


def _text(about: dict[str, Any]) -> str:
    lines = {key: value for key, value in about.items() if not isinstance(value, list | dict)}
    if "elements" in about:
        counts = about["elements"]
        kinds = ", ".join(f"{n:,} {dtype}" for dtype, n in counts.items())
        lines["elements"] = f"{sum(counts.values()):,} ({kinds})"
    if "parameters" in about:
        count = about["parameters"].get("count")
        lines["parameters"] = f"{about['parameters']['given']}{'' if count is None else f', {count:,}'}"
    for key, value in about.items():
        if key in ("arrays", "layout", "inputs", "outputs"):
            lines[key] = [f"{x['name']} {x['dtype']}[{', '.join(map(str, x['shape']))}]" for x in value]
        elif key == "versions":
            lines[key] = ", ".join(f"{name} {version}" for name, version in value.items())
        elif isinstance(value, list):
            lines[key] = ", ".join(map(str, value))
    width = max(map(len, lines))
    out = []
    for key, value in lines.items():
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            out.append(f"{key if i == 0 else '':{width}}  {item}")
    return "\n".join(out)


# --- export -----------------------------------------------------------------------------------------------------


def _export(given: argparse.Namespace) -> Path:
    """Write the file; its path."""
    model, (ps, st) = _model(given.model), _parameters(load(given.params))
    _, fresh = setup(jax.random.key(0), model)
    if st is None and not all(map(is_random_key, jax.tree.leaves(fresh))):
        raise ValueError(
            f"the state of {given.model} has arrays, such as running statistics, and {str(given.params)!r} has no "
            'state: save both, lux.save(path, {"ps": ps, "st": st})'
        )
    suffix = _FORMATS[given.to]
    output = given.output or given.params.with_suffix(suffix)
    if output.suffix in WRITERS and output.suffix != suffix:
        raise ValueError(f"--output {output} is not the name of what --to {given.to} writes: {suffix or 'a folder'}")
    WRITERS[suffix](
        output, model, ps, testmode(fresh if st is None else st), _inputs(given.input, given.dtype),
        batch_axis=None, params=given.parameters,
    )  # fmt: skip
    return output


def _model(where: str) -> Layer:
    name, _, attribute = where.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"--model {where}: there is no module {error.name!r} in the working folder, {os.getcwd()}, and none is "
            "installed"
        ) from error
    finally:
        sys.path.pop(0)
    attribute = attribute or "model"
    model = getattr(module, attribute, None)
    if not isinstance(model, Layer):
        found = describe(model) if hasattr(module, attribute) else f"no {attribute!r}"
        layers = ", ".join(key for key, value in vars(module).items() if isinstance(value, Layer))
        raise TypeError(
            f"--model {where}: expected the name of a layer, module:name, found {found}; the layers in {name} are: "
            f"{layers or 'none'}"
        )
    return model


def _parameters(tree: Any) -> tuple[Any, Any]:
    """Parameters and state of what was loaded."""
    if isinstance(tree, ComponentVector):
        return tree, None
    if isinstance(tree, dict) and "ps" in tree:
        return tree["ps"], tree.get("st")
    raise ValueError(f"the file holds a {type(tree).__name__}, neither a ComponentVector nor a dict of `ps` and `st`")


def _inputs(shapes: list[str], dtype: str) -> Any:
    scope = jax.export.SymbolicScope()
    specs = [jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype) for shape in shapes]
    return specs[0] if len(specs) == 1 else tuple(specs)


if __name__ == "__main__":
    sys.exit(main())
