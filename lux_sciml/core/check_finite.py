"""check_finite: the first layer, by its path, where a NaN or Inf appears."""

import functools
from typing import Any

import equinox as eqx
import jax

from .._tree import all_finite, is_inexact
from .container import Wrapper
from .field import checks_itself
from .layer import Layer, as_layer
from .printing import option_text
from .static import is_traced
from .walk import instrument

_CHECKS = ("both", "forward", "backward")


@checks_itself
def check_finite(layer: Layer, *, check: str = "both") -> Layer:
    """The model with every layer watched: the first one where a NaN or Inf appears is named by its path.

    The result is called with the same parameters and state. `check` is `"forward"`, for outputs, `"backward"`, for
    gradients by inputs and parameters, or `"both"`. Backward checks allow reverse mode only; use `check="forward"`
    under `jax.jvp`.

    Outside of `jax.jit` a `FloatingPointError` is raised; inside, the compiled program raises a
    `jax.errors.JaxRuntimeError`, with the same sentence and a page around it. Raises `ValueError` for another `check`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lux.Dense(2, 3), jnp.log)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> lux.check_finite(model)(-jnp.ones(2), ps.at["layer_0.weight"].set(1.0), st)
    Traceback (most recent call last):
    ...
    FloatingPointError: NaN or Inf appears in the output of `layer_1`, Lambda(log)
    """
    if check not in _CHECKS:
        raise ValueError(f"check_finite checks {', '.join(map(repr, _CHECKS))}, got {check!r}")
    return instrument(as_layer(layer), lambda path, inner, watched: _Watched(path, option_text(inner), check, watched))


class _Watched(Wrapper):
    """Checks what comes out of a layer: its output forward, the gradients by input and parameters backward."""

    watches = True  # errors name the layer inside

    path: str
    text: str
    check: str
    layer: Layer

    def forward(self, x, ps, st):
        here = f"`{self.path}`, {self.text}" if self.path else f"the whole model, {self.text}"
        if self.check != "backward" and not self.path:
            x = _require_finite(x, "NaN or Inf is in the input of the model")
        if self.check != "forward":
            x, ps = _watch_gradient(f"NaN or Inf appears in the gradient of {here}", (x, ps))
        y, st = self.layer.forward(x, ps, st)
        if self.check != "backward":
            y = _require_finite(y, f"NaN or Inf appears in the output of {here}")
        if self.check != "forward" and not self.path:
            y = _watch_gradient("NaN or Inf is in the gradient that the loss gives the model", y)
        return y, st


def _require_finite(tree: Any, message: str) -> Any:
    leaves = [jax.lax.stop_gradient(leaf) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    if not leaves:
        return tree
    finite = all_finite(leaves)
    if is_traced(finite):
        return eqx.error_if(tree, ~finite, message)
    if not finite:
        raise FloatingPointError(message)
    return tree


def _watch_gradient(message: str, tree: Any) -> Any:
    """The tree itself; where its gradient is computed, that must be finite."""
    leaves, treedef = jax.tree.flatten(tree)
    watched = iter(_watched(message, [leaf for leaf in leaves if is_inexact(leaf)]))
    return treedef.unflatten([next(watched) if is_inexact(leaf) else leaf for leaf in leaves])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(message: str, leaves: list[Any]) -> list[Any]:
    return leaves


_watched.defvjp(lambda message, leaves: (leaves, None), lambda message, _, g: (_require_finite(g, message),))
