"""A table of a model for a given input: shapes, parameters and bytes, layer by layer."""

import html
from collections.abc import Callable
from typing import Any

import jax

from .container import Container, Wrapper
from .field import checks_itself
from .layer import Layer, as_layer
from .printing import option_text
from .setup import parameter_length, setup, state_length
from .text import describe_array
from .walk import instrument, walk


class Summary(str):
    """The text of a table, which notebooks show as one."""

    rows: list[tuple[str, ...]]
    end: str

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(text) for text in row] for row in self.rows]
        lines = ["".join(f"<th>{text}</th>" for text in head)]
        lines += ["".join(f"<td>{text}</td>" for text in row) for row in rows]
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table><p>{html.escape(self.end)}</p>"


@checks_itself
def summary(layer: Layer, x: Any, dtype: Any = None) -> Summary:
    """The model as a table: path, layer, types and shapes of input and output, number of parameters, bytes.

    `x` is an input, or `jax.ShapeDtypeStruct`s of one; nothing is computed. `dtype` is that of the parameters. The
    result is a string, which notebooks show as a table.

    >>> import jax.numpy as jnp
    >>> from lux_sciml import Chain, Dense
    >>> print(summary(Chain(Dense(2, 3, jnp.tanh), Dense(3, 1)), jnp.ones((8, 2))))
    path     layer              input         output        parameters  bytes
    -------------------------------------------------------------------------
             Chain              float32[8,2]  float32[8,1]          13     52
    layer_0  Dense(2, 3, tanh)  float32[8,2]  float32[8,3]           9     36
    layer_1  Dense(3, 1)        float32[8,3]  float32[8,1]           4     16
    -------------------------------------------------------------------------
    total: 13 parameters (52 bytes), 0 states
    """
    layer = as_layer(layer)
    shapes = {place: ("", "") for place in walk(layer)}
    size = 0

    def wrap(path: str, inner: Layer, recorded: Layer) -> Layer:
        return _Recorder(recorded, lambda x, y: shapes.update({(path, inner): (_shape(x), _shape(y))}))

    recording = instrument(layer, wrap)

    def run(x):
        nonlocal size
        ps, st = setup(jax.random.key(0), recording, dtype, flat=False)
        size = max((leaf.dtype.itemsize for leaf in jax.tree.leaves(ps)), default=0)
        return recording.forward(x, ps, st)[0]

    jax.eval_shape(run, x)
    table = [("path", "layer", "input", "output", "parameters", "bytes")]
    for (path, inner), (shape_in, shape_out) in shapes.items():
        count = parameter_length(inner)
        text = type(inner).__name__ if isinstance(inner, Container | Wrapper) else option_text(inner)
        table.append((path, text, shape_in, shape_out, f"{count:_}", f"{count * size:_}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [_line(row, widths) for row in table]
    rule = "-" * len(lines[0])
    total, states = parameter_length(layer), state_length(layer)
    end = f"total: {total:_} parameters ({total * size:_} bytes), {states:_} states"
    out = Summary("\n".join([lines[0], rule, *lines[1:], rule, end]))
    out.rows, out.end = table, end
    return out


class _Recorder(Wrapper):
    """Calls `record(x, y)` with every input and output of a layer."""

    watches = True  # errors name the layer inside

    layer: Layer
    record: Callable

    def forward(self, x, ps, st):
        y, st = self.layer.forward(x, ps, st)
        self.record(x, y)
        return y, st


def _shape(x: Any) -> str:
    texts = [describe_array(leaf) for leaf in jax.tree.leaves(x) if hasattr(leaf, "shape")]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''})"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    left = [text.ljust(width) for text, width in zip(row[:-2], widths[:-2], strict=True)]
    right = [text.rjust(width) for text, width in zip(row[-2:], widths[-2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()
