"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver.

In this order, each file using those before it: `nodes` (containers opened and closed), `split` (the cut of a vector),
`difference` (two layouts compared), `layout` (what a vector holds, by path), `arithmetic`, `updates`, `printing`,
`vector`, `matrix`, `files` (JSON and npz) and `constraints`.
"""

from .files import from_json as from_json, load, load_into, save, to_json as to_json
from .layout import Layout, layout_of as layout_of
from .matrix import ComponentMatrix, outer as outer
from .nodes import Path as Path, nest as nest, path_string as path_string
from .vector import ComponentVector, concat, named_like as named_like, refuse_reserved as refuse_reserved

__all__ = ["ComponentMatrix", "ComponentVector", "Layout", "concat", "load", "load_into", "save"]
