"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver.

In this order, each file using those before it: `nodes` (containers opened and closed), `split` (the cut of a vector),
`difference` (two layouts compared), `layout` (what a vector holds, by path), `arithmetic`, `updates`, `printing`,
`tables` (for pandas, for loggers), `vector`, `matrix`, `documents` (layouts as JSON), `replacing` (files written whole
or not at all), `safetensors` (their format), `trees` (structure and arrays apart), `files` and `constraints`.
"""

from .documents import from_json as from_json, to_json as to_json
from .files import load, load_into, save
from .layout import Layout, layout_of as layout_of
from .matrix import ComponentMatrix, outer as outer
from .nodes import Path as Path, nest as nest, path_string as path_string
from .tables import flat_dict
from .vector import ComponentVector, concat, named_like as named_like, refuse_reserved as refuse_reserved

__all__ = ["ComponentMatrix", "ComponentVector", "Layout", "concat", "flat_dict", "load", "load_into", "save"]
