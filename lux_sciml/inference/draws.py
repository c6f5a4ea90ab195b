"""Draws of parameters, as samplers return them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..components import ComponentVector


class Draws(NamedTuple):
    """Draws of parameters by a sampler.

    * `params`: a batch of vectors `(chains, draws, n)`: `draws.params.physics.growth` is `(chains, draws)`;
    * `log_density`: `(chains, draws)`, that of the free vectors;
    * `stats`: arrays `(chains, draws)` by the names that ArviZ has for them, `diverging`, `n_steps` and others.

    >>> from lux_sciml.components import ComponentVector
    >>> layout = ComponentVector(a=1.0, b=[2.0, 3.0]).layout
    >>> draws = Draws(ComponentVector(np.ones((4, 100, 3)), layout), np.zeros((4, 100)), {})
    >>> draws.params.a.shape, draws.flat.b.shape
    ((4, 100), (400, 2))
    >>> draws
    Draws(4 chains of 100 draws of 3 parameters, stats: none)
    """

    params: ComponentVector
    log_density: np.ndarray
    stats: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        chains, draws = self.log_density.shape
        stats = ", ".join(self.stats) or "none"
        return f"Draws({chains} chains of {draws} draws of {self.params.layout.size} parameters, stats: {stats})"

    @property
    def flat(self) -> ComponentVector:
        """The draws of all chains, a batch `(chains * draws, n)`, as `sampled_band` takes them."""
        layout = self.params.layout
        return ComponentVector(self.params.data.reshape(-1, layout.size), layout)
