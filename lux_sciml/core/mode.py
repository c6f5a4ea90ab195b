"""Mode: the switch between training and testing, an entry of the state."""

import enum
from typing import Any

import jax


@jax.tree_util.register_static
class Mode(enum.Enum):
    """Whether a layer trains, `Mode.TRAIN`, or is tested, `Mode.TEST`: an entry of the state of layers that differ.

    A static pytree node: `jit` traces anew where it is switched, and never takes it for an array. `lux.trainmode` and
    `lux.testmode` switch all entries of a state.

    `Mode.HOLD` is for solves with `on_state_update="first"`: normalizations with running statistics train, and return
    those of the batch in the place of the running ones.

    >>> import lux_sciml as lux
    >>> _, st = lux.setup(jax.random.key(0), lux.BatchNorm(3))
    >>> st["mode"], lux.testmode(st)["mode"]
    (Mode.TRAIN, Mode.TEST)
    """

    TRAIN = "train"
    TEST = "test"
    HOLD = "hold"

    def __repr__(self) -> str:
        return f"Mode.{self.name}"


jax.export.register_pytree_node_serialization(
    Mode,
    serialized_name="lux_sciml.Mode",
    serialize_auxdata=lambda mode: mode.value.encode(),
    deserialize_auxdata=lambda data: Mode(data.decode()),
)


def modes(tree: Any) -> set[Mode]:
    """The modes in a state, or in any other tree."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Mode))
    return {leaf for leaf in leaves if isinstance(leaf, Mode)}
