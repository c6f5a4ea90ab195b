"""Deep equilibria of several scales at once."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import Container, Layer, as_layer, field
from ..core.converters import dict_of
from .deep_equilibrium import DeepEquilibrium

Layers = Sequence[Layer | Callable[..., Any]]


class MultiScaleCell(Container):
    r"""A cell of `n` scales: a branch each, then a fusion of all of them.

    .. math::
        u_1 = b_1(z_1, x), \quad u_i = b_i(z_i), \quad z_i' = p_i\Big(\sum_j m_{ij}(u_j)\Big)

    Input `((z_1, ..., z_n), x)`, output `(z_1, ..., z_n)`. Functions become `Lambda`s.

    * `branches`: `n` layers, of which the first one gets the pair `(z_1, x)`.
    * `fusion`: `n` tuples of `n` layers, the row `i` mapping every scale to the scale `i`.
    * `after`: `n` layers.

    Children: `branches_0`, `fusion_0_1` (from scale 1 to scale 0), `after_0`, ...

    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", NeurIPS 2020. Raises `ValueError` where the numbers of
    layers do not agree.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.MultiScaleCell(
    ...     branches=(lux.Parallel(jnp.add, lux.Dense(4, 4), lux.Dense(3, 4)), lux.Dense(2, 2)),
    ...     fusion=((lux.NoOp(), lux.Dense(2, 4)), (lux.Dense(4, 2), lux.NoOp())),
    ...     after=(jnp.tanh, jnp.tanh),
    ... )
    >>> ps, st = lux.setup(jax.random.key(0), cell)
    >>> zs, st = cell(((jnp.zeros((5, 4)), jnp.zeros((5, 2))), jnp.ones((5, 3))), ps, st)
    >>> [z.shape for z in zs]
    [(5, 4), (5, 2)]
    """

    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))

    def __init__(self, branches: Layers, fusion: Sequence[Layers], after: Layers):
        n = len(branches)
        if any(len(row) != n for row in fusion) or len(fusion) != n or len(after) != n:
            raise ValueError(
                f"{n} scales need {n} branches, a fusion of {n} rows of {n} layers, and {n} layers after it; got a "
                f"fusion of rows of {[len(row) for row in fusion]} and {len(after)} layers after it"
            )
        layers: dict[str, Any] = {
            **{f"branches_{i}": layer for i, layer in enumerate(branches)},
            **{f"fusion_{i}_{j}": layer for i, row in enumerate(fusion) for j, layer in enumerate(row)},
            **{f"after_{i}": layer for i, layer in enumerate(after)},
        }
        self.layers = layers

    def init_arguments(self):
        n = round((1 + len(self)) ** 0.5) - 1  # of n, n * n and n layers
        return {
            "branches": tuple(self[f"branches_{i}"] for i in range(n)),
            "fusion": tuple(tuple(self[f"fusion_{i}_{j}"] for j in range(n)) for i in range(n)),
            "after": tuple(self[f"after_{i}"] for i in range(n)),
        }

    def forward(self, x, ps, st):
        zs, x = x
        n = len(zs)
        inputs = {f"branches_{i}": z if i else (z, x) for i, z in enumerate(zs)}
        us, st = self.run(ps, st, **inputs)
        out = []
        for i in range(n):
            mapped, st = self.run(ps, st, **{f"fusion_{i}_{j}": u for j, u in enumerate(us)})
            (z,), st = self.run(ps, st, **{f"after_{i}": sum(mapped[1:], mapped[0])})
            out.append(z)
        return tuple(out), st


class MultiScaleDEQ(DeepEquilibrium):
    """The joint fixed point of several scales: `DeepEquilibrium(MultiScaleCell(branches, fusion, after), scales)`.

    * `branches`, `fusion`, `after`: those of `lux.MultiScaleCell`;
    * `scales`: the shapes of the scales, without the batch;
    * `options`: those of `lux.DeepEquilibrium`.

    The output is a tuple of arrays `(batch, *scale)`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> small = dict(init_weight=lux.initializers.Normal(0.1))
    >>> model = lux.MultiScaleDEQ(
    ...     branches=(lux.Parallel(jnp.add, lux.Dense(4, 4, **small), lux.Dense(3, 4)), lux.Dense(2, 2, **small)),
    ...     fusion=((lambda u: u, lux.Dense(2, 4, **small)), (lux.Dense(4, 2), lambda u: u)),
    ...     after=(jnp.tanh, jnp.tanh),
    ...     scales=((4,), (2,)),
    ... )
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> zs, st = model(jnp.ones((5, 3)), ps, st)
    >>> [z.shape for z in zs], st["stats"]["converged"]
    ([(5, 4), (5, 2)], Array(True, dtype=bool))
    """

    def __init__(
        self,
        branches: Layers,
        fusion: Sequence[Layers],
        after: Layers,
        scales: Sequence[Sequence[int]],
        **options: Any,
    ):
        super().__init__(MultiScaleCell(branches, fusion, after), scales, **options)

    def init_arguments(self):
        fields = {f.name: f.default for f in dataclasses.fields(self) if f.name not in ("cell", "shape")}
        options = {name: getattr(self, name) for name, default in fields.items() if getattr(self, name) != default}
        return {**self.cell.init_arguments(), "scales": self.shape, "options": options}
