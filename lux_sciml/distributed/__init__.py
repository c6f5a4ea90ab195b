"""Many devices and many processes: where a training state lies, on JAX's own engine.

`shard(state, mesh(), "full")` gives a state that `lux.train_step` and `lux.fit` take as any other; `gather` is the way
back. `initialize()` joins several processes.

In this order, each file using those before it: `watch` (of processes that are gone), `processes`, `meshes`,
`agreement` (of processes), `form` (a vector in parts), `optimizers` (whether they mind), `placement` (what steps and
runs ask) and `sharding`; and `estimate`, of what a step needs.
"""

from .estimate import Estimate as Estimate, estimate as estimate
from .form import Sharded as Sharded
from .meshes import mesh as mesh
from .processes import initialize as initialize
from .sharding import gather as gather, shard as shard

__all__ = ["Estimate", "Sharded", "estimate", "gather", "initialize", "mesh", "shard"]
