"""AugmentedODE: extra dimensions for a differential equation."""

from typing import Any, ClassVar, SupportsIndex

import jax
import jax.numpy as jnp

from ..._tree import describe
from ...core import Layer, Wrapper, as_layer, field
from ...core.container import call_child
from ...core.converters import checks_itself, count
from ..equation import Equation, equation_of
from ..inputs import initial_array


@checks_itself
def _extra(value: Any) -> int | Layer:
    return count(value) if isinstance(value, SupportsIndex) else as_layer(value)


class AugmentedODE(Wrapper):
    r"""A differential-equation layer that starts from :math:`(y_0, 0)`, or :math:`(y_0, g(y_0))`: more features.

    Trajectories of an ordinary differential equation cannot cross; in more dimensions they need not. `layer` is any
    layer of the family that takes an initial value, of `features + extra` features: its input `y0`, or the first item
    of a tuple such as `(y0, ts)`, is an array of shape `(..., features)`. The output is the layer's, with the extra
    features.

    `extra` is the number of zeros appended along the last axis, or a layer g, from `(..., features)` to `(..., extra)`:
    learned starts of the extra features. Its parameters are `ps["extra"]` then, and the layer's `ps["layer"]`.

    Dupont, Doucet and Teh, "Augmented neural ODEs", NeurIPS 2019; Massaroli et al., "Dissecting neural ODEs", NeurIPS
    2020. Raises `ValueError` for fewer than one extra feature, for a layer that does not start from an initial value,
    and where g returns another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.AugmentedODE(lux.NeuralODE(lux.Dense(3, 3), ts=[0.0, 1.0], output="final"), 1)
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> node(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 3)
    >>> learned = node.replace(extra=lux.Dense(2, 1, jnp.tanh))
    >>> ps, st = lux.setup(jax.random.key(0), learned)
    >>> list(ps.keys()), learned(jnp.ones((8, 2)), ps, st)[0].shape
    (['layer', 'extra'], (8, 3))
    """

    beside: ClassVar = ("extra",)

    layer: Layer = field(converter=as_layer)
    extra: int | Layer = field(converter=_extra)

    def __check_init__(self):
        equation = equation_of(self.layer)
        if equation is not None and equation.takes != Equation.takes:
            raise ValueError(
                f"AugmentedODE appends features to an initial value, and a {type(equation).__name__} takes "
                f"{equation.takes}"
            )

    def forward(self, x, ps, st):
        y0, *rest = x if isinstance(x, tuple) else (x,)
        y0 = jnp.asarray(initial_array("AugmentedODE", y0))
        if isinstance(self.extra, Layer):
            own = "extra" in self.layers_beside
            more, after = call_child(
                "extra", self.extra, y0, ps if own else {"extra": {}}, st if own else {"extra": {}}
            )
            if not isinstance(more, jax.Array) or more.shape[:-1] != y0.shape[:-1]:
                raise ValueError(
                    f"the layer `extra` of an AugmentedODE returns (..., extra) for {y0.shape}, got {describe(more)}"
                )
            st = {**st, "extra": after} if own else st
        else:
            more = jnp.zeros((*y0.shape[:-1], self.extra), y0.dtype)
        y0 = jnp.concatenate([y0, more.astype(y0.dtype)], axis=-1)
        child_ps, child_st = self.to_child(ps, st)
        out, child_st = self.layer.forward((y0, *rest) if rest else y0, child_ps, child_st)
        return out, self.from_child(child_ps, child_st, st)[1]
