"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver.

In this order, each file using those before it: `nodes` (containers opened and closed), `split` (the cut of a vector),
`difference` (two layouts compared), `layout` (what a vector holds, by path), `arithmetic`, `updates`, `printing`,
`tables` (for pandas, for loggers), `vector`, `matrix`, `documents` (layouts as JSON), `replacing` (files written whole
or not at all), `safetensors` (their format), `trees` (structure and arrays apart), `files` and `constraints`.
"""

from .. import _names
from .documents import from_json as from_json, to_json as to_json
from .files import load, load_into, save
from .layout import Layout
from .matrix import ComponentMatrix, outer as outer
from .tables import flat_dict
from .vector import ComponentVector, concat

__all__ = ["ComponentMatrix", "ComponentVector", "Layout", "concat", "flat_dict", "load", "load_into", "save"]

__dir__ = _names.public(__name__)
