"""Models out of the notebook: files that other programs load, without lux_sciml."""

from .function import PlainFunction as PlainFunction, plain_function as plain_function

__all__ = []
