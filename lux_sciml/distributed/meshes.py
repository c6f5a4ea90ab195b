"""Meshes: the devices of a run, along named axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._tree import is_random_key
from ..core.converters import checks_itself, integer


@checks_itself
def mesh(*, devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """The devices along named axes, for `shard`: all of them along one axis, `devices`, by default.

    `mesh(data=2, model=4)` has two axes of these sizes, and one size may be -1: what is left. `devices` are some of
    `jax.devices()`, of all processes. The axes are JAX's automatic ones: the compiler divides the work.

    Raises `ValueError` where the sizes do not fit the number of devices.

    >>> import jax
    >>> mesh().size == len(jax.devices()), mesh(data=-1, model=1).axis_names
    (True, ('data', 'model'))
    """
    found = jax.devices() if devices is None else list(devices)
    if len(set(found)) < len(found):
        raise ValueError(f"a mesh has each device once, got {found}")
    sizes = {name: integer(size) for name, size in axes.items()} or {"devices": len(found)}
    open_ends = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_ends) == 1 and known > 0:
        sizes[open_ends[0]] = len(found) // known
    text = ", ".join(f"{name}={size}" for name, size in (axes or sizes).items())
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(found):
        raise ValueError(f"a mesh has as many places as devices: mesh({text}) does not fit {len(found)} devices")
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=found)


def require_mesh(value: Any) -> Mesh:
    if not isinstance(value, Mesh):
        raise TypeError(f"the second argument is a mesh, lux.distributed.mesh(), got {value!r}")
    explicit = [name for name, kind in zip(value.axis_names, value.axis_types, strict=True) if kind != AxisType.Auto]
    if explicit:
        raise ValueError(f"the axes of the mesh are automatic ones, as lux.distributed.mesh makes; not so: {explicit}")
    return value


def axes_of(spec: Any) -> tuple[str, ...]:
    """The axes of a mesh that a `PartitionSpec` names."""
    return tuple(name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,)) if name)


def put(x: Any, sharding: NamedSharding) -> Any:
    """An array that all processes have, each device with its part."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if is_random_key(x):
        data, spec = jax.random.key_data(x), PartitionSpec(*sharding.spec)
        return jax.random.wrap_key_data(put(data, NamedSharding(sharding.mesh, spec)), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
