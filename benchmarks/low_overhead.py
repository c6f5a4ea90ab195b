"""The peers' steps with the least that goes on around the compiled program."""

import os
import shutil

import equinox as eqx
import jax


def flattened(step, carry):
    """Equinox's "low-overhead training loops": what is compiled takes flat leaves, and puts the model together itself.

    `step` and what is returned are functions `(carry, batch) -> (loss, carry)`; then comes where to start.
    """
    arrays, static = eqx.partition(carry, eqx.is_array)
    leaves, treedef = jax.tree.flatten(arrays)

    @jax.jit
    def flat(leaves, batch):
        loss, carry = step(eqx.combine(jax.tree.unflatten(treedef, leaves), static), batch)
        return loss, jax.tree.leaves(eqx.filter(carry, eqx.is_array))

    return flat, leaves


COMPILER = shutil.which("g++")  # torch.compile needs it: its rows are left out without


def torch_compiled(function):
    import torch

    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else processes of its own, which stay, take the cores
    torch._dynamo.reset()
    return torch.compile(function)
