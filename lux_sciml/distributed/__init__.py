"""Many devices and many processes: where a training state lies, on JAX's own engine.

`shard` gives a state on a `mesh`, `shard(state, mesh(), "full")`, that `lux.train_step` and `lux.fit` take as any
other, with parameters in parts, `Sharded`; `gather` is the way back. `initialize` joins several processes. `estimate`
says what a step needs, an `Estimate`.

In this order, each file using those before it: `watch` (of processes that are gone), `processes`, `meshes`,
`agreement` (of processes), `form` (a vector in parts), `optimizers` (whether they mind), `placement` (what steps and
runs ask) and `sharding`; and `estimate`.
"""

from .. import _names
from .estimate import Estimate, estimate
from .form import Sharded
from .meshes import mesh
from .processes import initialize
from .sharding import gather, shard

__all__ = ["Estimate", "Sharded", "estimate", "gather", "initialize", "mesh", "shard"]

__dir__ = _names.public(__name__)
