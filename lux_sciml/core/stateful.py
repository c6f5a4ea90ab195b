"""StatefulLayer: a layer with its parameters and state, for scripts and closures."""

from typing import Any

import jax

from .._compat import trace_state
from .layer import Layer


class StatefulLayer:
    """A layer together with its parameters and state: `y = model(x)`, or `y = model(x, ps)` for other parameters.

    The next state is kept in `st`, which may be read and set (`model.st = lux.testmode(model.st)`), and so may `ps`.
    Inside a function that JAX transforms, make the StatefulLayer inside too, and return its `st`. Raises `ValueError`
    where a state that the call renews would leak out of a transform.

    >>> from lux_sciml import Dense, setup
    >>> import jax.numpy as jnp
    >>> model = StatefulLayer(Dense(2, 3), *setup(jax.random.key(0), Dense(2, 3)))
    >>> model(jnp.ones((8, 2))).shape
    (8, 3)
    """

    def __init__(self, layer: Layer, ps: Any, st: Any):
        self.layer, self.ps, self.st = layer, ps, st
        self._made_in = trace_state()

    def __call__(self, x: Any, ps: Any = None) -> Any:
        """The output for input `x`."""
        y, st = self.layer(x, self.ps if ps is None else ps, self.st)
        if trace_state() != self._made_in and any(isinstance(leaf, jax.core.Tracer) for leaf in self._renewed(st)):
            raise ValueError(
                f"this {type(self.layer).__name__} renews its state, which would leak out of the transform of JAX "
                "around the call: make the StatefulLayer inside the transformed function and return its `st`, or call "
                "`y, st = layer(x, ps, st)`; in test mode most layers renew nothing"
            )
        self.st = st
        return y

    def _renewed(self, st: Any) -> list[Any]:
        before, after = jax.tree.leaves(self.st), jax.tree.leaves(st)
        return [leaf for i, leaf in enumerate(after) if i >= len(before) or leaf is not before[i]]

    def __repr__(self) -> str:
        return f"StatefulLayer({self.layer!r})"
