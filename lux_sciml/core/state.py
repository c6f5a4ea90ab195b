"""The state of a model: nested dicts that mirror it; the switch between training and testing."""

import enum
from typing import Any

import jax


@jax.tree_util.register_static
class Mode(enum.Enum):
    """Whether a layer trains or is tested. A static pytree node: switching it retraces; `jit` never sees a number."""

    TRAIN = "train"
    TEST = "test"

    def __repr__(self) -> str:
        return f"Mode.{self.name}"


jax.export.register_pytree_node_serialization(
    Mode,
    serialized_name="lux_sciml.Mode",
    serialize_auxdata=lambda mode: mode.value.encode(),
    deserialize_auxdata=lambda data: Mode(data.decode()),
)


def _is_mode(x: Any) -> bool:
    return isinstance(x, Mode)


def _switched(st: Any, mode: Mode) -> Any:
    return jax.tree.map(lambda x: mode if _is_mode(x) else x, st, is_leaf=_is_mode)


def trainmode(st: Any) -> Any:
    """The state with every layer in training.

    >>> trainmode({"layer_0": {"mode": Mode.TEST}})
    {'layer_0': {'mode': Mode.TRAIN}}
    """
    return _switched(st, Mode.TRAIN)


def testmode(st: Any) -> Any:
    """The state with every layer in testing: dropout is off, normalisations use their running statistics."""
    return _switched(st, Mode.TEST)


testmode.__test__ = False  # pytest: not a test


def update_state(st: Any, name: str, value: Any) -> Any:
    """The state with every entry called `name`, at all depths, replaced. Raises `KeyError` where there is none.

    >>> update_state({"layer_0": {"scale": 1.0}, "layer_1": {}}, "scale", 2.0)
    {'layer_0': {'scale': 2.0}, 'layer_1': {}}
    """
    found = False

    def walk(node: Any) -> Any:
        nonlocal found
        if not isinstance(node, dict):
            return node
        found |= name in node
        return {key: value if key == name else walk(child) for key, child in node.items()}

    out = walk(st)
    if not found:
        raise KeyError(f"no entry of the state is called {name!r}")
    return out


def is_random_key(x: Any) -> bool:
    """Whether `x` is a typed random key, or an array of them."""
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
