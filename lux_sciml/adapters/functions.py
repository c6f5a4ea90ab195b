"""A layer as pure functions: an `(init, apply)` pair, and a function of parameters and input alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ..core import Layer, as_layer, setup
from ..core.converters import checks_itself, choice
from ..core.frozen import updated_entries
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree


class InitApply(NamedTuple):
    """What `init_apply` makes: `ps, st = init(key)` and `y, st = apply(ps, st, x)`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> pair = lux.adapters.init_apply(jnp.tanh)
    >>> pair.apply(*pair.init(jax.random.key(0)), jnp.zeros(2))[0].tolist()
    [0.0, 0.0]
    """

    init: Callable[..., tuple[Any, State]]
    apply: Callable[[Parameters, State, Any], tuple[Any, State]]


@checks_itself
def init_apply(layer: Layer | Callable[..., Any], *, flat: bool = True) -> InitApply:
    """A layer as a pair of pure functions, as Haiku and Stax have them.

    `ps, st = init(key)`, which takes an example input too, as other libraries' do, and has no use for it; and
    `y, st = apply(ps, st, x)`. With `flat` the parameters are a ComponentVector, else nested dicts.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> init, apply = lux.adapters.init_apply(lux.Dense(2, 3))
    >>> ps, st = init(jax.random.key(0))
    >>> apply(ps, st, jnp.ones(2))[0].shape
    (3,)
    """
    layer = as_layer(layer)

    def init(key: jax.Array, *example: Any) -> tuple[Any, State]:
        return setup(key, layer, flat=flat)

    def apply(ps: Parameters, st: State, x: Any) -> tuple[Any, State]:
        return layer(x, ps, st)

    return InitApply(init, apply)


@checks_itself
def as_function(layer: Layer, st: State, *, on_state_update: str = "raise") -> Callable[[Parameters, Any], Any]:
    """The pure function `f(ps, x)` of a layer with its state as it is: for optax, optimistix, `jax.vmap` over `ps`.

    optimistix takes it as it is, `optimistix.least_squares(lambda ps, data: f(ps, data.x) - data.y, solver, ps, args)`.
    Raises `ValueError`, while tracing, for a layer that updates its state, such as Dropout in training: then
    `lux.testmode(st)` is its state, or `on_state_update="discard"` leaves out the next one.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Dense(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> f = lux.adapters.as_function(layer, st)
    >>> jax.vmap(f, (0, None))(jnp.stack([ps.data, 2 * ps.data]), jnp.ones(2)).shape
    (2, 3)
    """
    discard = choice("raise", "discard")(on_state_update) == "discard"

    def f(ps: Parameters, x: Any) -> Any:
        y, after = layer(x, ps, st)
        if not discard and any(a is not b for a, b in zip(jax.tree.leaves(st), jax.tree.leaves(after), strict=True)):
            tree = parameter_tree(layer, ps)
            updated = updated_entries(lambda st: layer.forward(x, tree, st)[1], st)
            if updated:
                raise ValueError(
                    f"the layer updates its state (`{updated[0]}`), which a function of parameters and input alone "
                    'cannot return: give `lux.testmode(st)`, or `on_state_update="discard"`'
                )
        return y

    return f
