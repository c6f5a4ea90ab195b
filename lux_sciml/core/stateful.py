"""StatefulLayer: a layer with its parameters and state, for scripts and closures."""

from typing import Any

import jax

from .._compat import trace_state
from .field import checks_itself
from .layer import Layer, Parameters, State, as_layer
from .static import is_traced


class StatefulLayer:
    """A layer together with its parameters and state: `y = model(x)`, or `y = model(x, ps)` for other parameters.

    The next state is kept in `st`, which may be read and set, and so may `ps`. `lux.testmode(model)`,
    `lux.trainmode(model)` and `lux.update_state(model, ...)` return a StatefulLayer in another state and leave this one
    as it is; `lux.parameter_length` and `lux.state_length` count. It is copied and pickled with its arrays.

    Inside a function that JAX transforms, make the StatefulLayer inside too, and return its `st`. Raises `ValueError`
    where a state that the call renews would leak out of a transform, `TypeError` for what is no layer and no state.

    >>> import lux_sciml as lux
    >>> import jax.numpy as jnp
    >>> layer = lux.Chain(lux.Dense(2, 3), lux.Dropout(0.5))
    >>> model = StatefulLayer(layer, *lux.setup(jax.random.key(0), layer))
    >>> model(jnp.ones((8, 2))).shape
    (8, 3)
    >>> model = lux.testmode(model)
    >>> bool(jnp.all(model(jnp.ones(2)) == model(jnp.ones(2))))
    True
    """

    @checks_itself
    def __init__(self, layer: Layer, ps: Parameters, st: State):
        if not isinstance(st, dict):
            raise TypeError(f"StatefulLayer(layer, ps, st): the state is a dict, got a {type(st).__name__}")
        self.layer, self.ps, self.st = as_layer(layer, "StatefulLayer(layer, ps, st)"), ps, st
        self._made_in = trace_state()

    def __call__(self, x: Any, ps: Parameters | None = None) -> Any:
        """The output for input `x`."""
        y, st = self.layer(x, self.ps if ps is None else ps, self.st)
        if trace_state() != self._made_in and any(map(is_traced, self._renewed(st))):
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

    def __reduce__(self):
        return StatefulLayer, (self.layer, self.ps, self.st)

    def __repr__(self) -> str:
        return f"StatefulLayer({self.layer!r})"
