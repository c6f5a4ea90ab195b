"""Which names of a module are public: what `dir`, completion and the pages of the documentation show of it."""

import inspect
import sys
from collections.abc import Callable


def public(module: str) -> Callable[[], list[str]]:
    """The `__dir__` of a module, by its name: what a file defines or the `__init__` of a folder imports, and `__all__`.

    Names with an underscore in front are not public, nor are modules that are not in `__all__`.

    >>> import lux_sciml as lux
    >>> dir(lux.discovery)
    ['SparseFit', 'SparseTerms', 'polynomials', 'sparse_regression', 'symbolic']
    """
    there = vars(sys.modules[module])

    def is_here(value: object) -> bool:
        return "__path__" in there or getattr(value, "__module__", module) == module

    def names() -> list[str]:
        mine = {name for name, value in there.items() if is_here(value) and not inspect.ismodule(value)}
        return sorted({name for name in mine if not name.startswith("_")}.union(there.get("__all__", ())))

    return names
