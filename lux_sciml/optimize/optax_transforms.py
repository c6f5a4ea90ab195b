"""optax transformations that work array by array, for flat named vectors."""

from typing import Any

import optax

from ..components import ComponentVector, Layout
from ..core.converters import checks_itself


@checks_itself
def per_array(
    tx: optax.GradientTransformation, layout: Layout | ComponentVector
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation `tx` for flat vectors of a layout: `tx` sees the tree of parameters, array by array.

    A flat vector is one array to optax. That is right, and fast, for elementwise rules (sgd, adam), but rules that work
    array by array, or choose by path, need the arrays: masked weight decay, `optax.multi_transform`, LAMB, LARS, Muon,
    clipping by block. The state of `tx` is that of the tree; gradients and updates are flat vectors `(n,)`. In
    `minimize` with `trainable`, the layout is that of the trained components alone.

    Raises `ValueError` for vectors of another length, `TypeError` for other arguments.

    >>> import jax.numpy as jnp
    >>> ps = ComponentVector(weight=[[3, 4]], bias=[1])
    >>> tx = per_array(optax.clip_by_block_rms(1.0), ps)
    >>> updates, state = tx.update(ps, tx.init(ps), ps)
    >>> updates["weight"]
    Array([[0.84852815, 1.1313709 ]], dtype=float32)
    """
    layout = getattr(layout, "layout", layout)
    if not isinstance(tx, optax.GradientTransformation) or not isinstance(layout, Layout):
        raise TypeError(
            "per_array(tx, layout) takes an optax transformation and a ComponentVector or its layout, got a "
            f"{type(tx).__name__} and a {type(layout).__name__}"
        )
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> Any:
        return tx.init(layout.unravel(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        def flat_like(tree):
            flat = layout.ravel(tree, updates.dtype)
            return ComponentVector(flat, layout) if isinstance(updates, ComponentVector) else flat

        if "grad" in extra:
            extra["grad"] = layout.unravel(extra["grad"])
        if "value_fn" in extra:  # of a line search
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda tree, *args, **kwargs: value_fn(flat_like(tree), *args, **kwargs)
        params = None if params is None else layout.unravel(params)
        tree, state = tx.update(layout.unravel(updates), state, params, **extra)
        return flat_like(tree), state

    return optax.GradientTransformationExtraArgs(init, update)
