"""The figures of a solve that an equilibrium layer keeps in its state."""

import jax
import jax.numpy as jnp

FIGURES = {  # each with what stands for a batch
    "residual": jnp.max,
    "steps": jnp.max,
    "evaluations": jnp.max,
    "converged": jnp.all,
    "skip_loss": jnp.mean,
    "jacobian_loss": jnp.mean,
    "spectral_radius": jnp.max,
    "backward_residual": jnp.max,
}
_TYPES = {"steps": jnp.int32, "evaluations": jnp.int32, "converged": bool}


def no_figures(shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """The figures before the first solve: NaN, no steps, not converged."""
    types = {name: _TYPES.get(name, jax.dtypes.canonicalize_dtype(float)) for name in FIGURES}
    return {name: jnp.full(shape, 0 if name in _TYPES else jnp.nan, dtype) for name, dtype in types.items()}


def kept_figures(st: dict[str, jax.Array], figures: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The figures with the shapes and types of those in the state: of each sample, or the worst of the batch."""
    worst = {name: value if value.ndim == st[name].ndim else FIGURES[name](value) for name, value in figures.items()}
    for name, value in worst.items():
        if value.shape != st[name].shape:
            raise ValueError(f"batch_shape says {st[name].shape}, but the input has a batch of {value.shape}")
    return {name: worst[name].astype(old.dtype) for name, old in st.items()}
