"""Mode: the switch between training and testing, an entry of the state."""

import enum

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
