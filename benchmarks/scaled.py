"""A net with a trainable factor, as in two of diffrax's notebooks."""

import jax.numpy as jnp

import lux_sciml as lux


class Scaled(lux.Container):
    """The output of `net` times `scale`."""

    net: lux.Layer

    def init_params(self, key):
        return {"scale": jnp.array(1.0), **super().init_params(key)}

    def forward(self, x, ps, st):
        (y,), st = self.run(ps, st, net=x)
        return ps["scale"] * y, st
