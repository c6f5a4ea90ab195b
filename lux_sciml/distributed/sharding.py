"""shard: a training state, or a vector, over the devices of a mesh; gather: the way back."""

import fnmatch
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from .._compat import of_all_processes
from .._tree import describe, is_random_key
from ..components import ComponentVector
from ..components.nodes import path_string
from ..core.converters import checks_itself, flag
from ..training import TrainState
from ..training.placement import HERE
from ..training.state import copied
from .agreement import broadcast as from_first, require_same_values
from .form import PAD, Form, Sharded, flat_rows
from .meshes import axes_of, put, require_mesh
from .optimizers import require_a_step, require_same_updates
from .placement import OnMesh

S = TypeVar("S", TrainState, ComponentVector)
HOW = ("replicated", "full", "members")


@checks_itself
def shard(state: S, mesh: Mesh, how: str | Mapping[str, Any] = "replicated", *, broadcast: bool = False) -> S:
    """A training state, or a vector of parameters, laid out over the devices of a mesh.

    What comes out is a `TrainState` as before: `train_step` and `fit` take it unchanged, divide each batch among the
    devices, and compute what one device would, to rounding: the objective sees the whole batch. The memory of `state`
    is its own still.

    * `how="replicated"`: every device has all parameters.
    * `how="full"`: each has an equal part of the parameters, the gradient, the optimizer's memory and the average
      `ema`. A ComponentVector is filled up with zeros, `pad_`, to a length that devices divide, a multiple of 1024, and
      gathered once in each step; the objective is given it without them. Of models with `Stack(..., flat_rows=True)`,
      `state.ps` is a `Sharded` pair: `rows` are gathered one by one in the stack, and the `rest` once, before; the
      objective is given nested dicts. The optimizer must take a vector element by element, or by norms of all of it,
      as Adam with clipping by the global norm does. Of parameters that are not all trained (`trainable`), those that
      are, with their gradient and memory, are a vector in parts of its own, which is gathered once more.
    * `how={"mlp.*.weight": PartitionSpec(None, "model")}`: axes of the mesh for the arrays of a tree
      (`lux.setup(key, model, flat=False)`), by patterns of their paths; the first that matches counts, and what none
      matches is on every device. Batches are divided along the axes of the mesh that no pattern names.
    * `how="members"`: an ensemble, or a batch of vectors, along its first axis; all see the same batches.
    * `broadcast`: of several processes, take the values of the first one. Without, they are compared, and what differs
      is told by its path.

    `gather` is the way back. Raises `TypeError` for what is no state or vector, `ValueError` for axes that the mesh
    does not have or that do not divide an array, for patterns that match nothing, and for optimizers whose steps depend
    on how a vector is stored.

    Zhao et al., "PyTorch FSDP", VLDB 2023; Rajbhandari et al., "ZeRO", SC 2020.

    >>> import jax, optax, lux_sciml as lux
    >>> state = lux.TrainState.create(lux.Dense(2, 3), optax.adam(1e-3), key=jax.random.key(0))
    >>> state = shard(state, lux.distributed.mesh(), "full")
    >>> state.ps.size, state.ps.weight.shape, tuple(state.ps.data.sharding.spec)
    (1024, (2, 3), ('devices',))
    >>> gather(state).ps.size
    9
    """
    mesh = require_mesh(mesh)
    flag(broadcast)
    if not isinstance(state, TrainState | ComponentVector):
        raise TypeError(f"what is sharded is a TrainState or a ComponentVector, got {describe(state)}")
    if not isinstance(how, Mapping) and how not in HOW:
        raise ValueError(f"how is one of {', '.join(map(repr, HOW))}, or a dict of patterns, got {how!r}")
    out: Any = gather(state) if isinstance(state, TrainState) and state.placement != HERE else state
    out = from_first(out) if broadcast else out
    require_same_values(out)
    return _sharded(out, mesh, how)


def _sharded(state: Any, mesh: Mesh, how: Any) -> Any:
    axes = tuple(mesh.axis_names)
    if isinstance(how, Mapping):
        return _by_patterns(state, mesh, how)
    forms, batch, members = (), axes, ()
    if how == "members":
        batch, members = (), axes
        _require_members(state, mesh)
    elif isinstance(state, TrainState) and jnp.ndim(state.step):
        raise ValueError(f'an ensemble of {jnp.size(state.step)} members is divided by how="members", got {how!r}')
    if how == "full":
        forms = _forms_of(state, mesh)
        tried = not isinstance(state, TrainState) or require_same_updates(state.optimizer, bool(forms[0].rows))
        for form in forms:
            state = jax.tree.map(
                lambda x, form=form: form.stored(x) if form.is_whole(x) else x, state, is_leaf=_is_parts
            )
        if not tried:
            require_a_step(state.optimizer, state.opt_state, forms[-1])
    specs = _specs(state, forms, P(axes) if how == "members" else P(), axes)
    return _placed(state, OnMesh(mesh, how, batch, members, specs, forms))


def _is_parts(x: Any) -> bool:
    return isinstance(x, ComponentVector | Sharded)


def _forms_of(state: Any, mesh: Mesh) -> tuple[Form, ...]:
    """The form of the parameters, and that of those which are trained, where these are not all."""
    ps = state.ps if isinstance(state, TrainState) else state
    if not isinstance(ps, ComponentVector) or ps.data.ndim != 1:
        raise TypeError(f'how="full" divides one flat ComponentVector, got {describe(ps)}; a tree takes patterns')
    rows = flat_rows(state.model, ps.layout) if isinstance(state, TrainState) else ()
    for path in rows:
        length = ps.layout.find(path)[1].shape[1]
        if length % mesh.size:
            raise ValueError(
                f"`{path_string(path)}` has rows of {length} elements, which {mesh.size} devices do not divide: "
                f"Stack(..., flat_rows={mesh.size}) makes rows that are multiples of it"
            )
    form = Form.of(ps.layout, rows, mesh.size)
    if not isinstance(state, TrainState) or state.part is None:
        return (form,)
    if rows:
        raise ValueError(
            'how="full" divides stacks of flat rows whose parameters are all trained, got `trainable`: take '
            '"replicated", or flat_rows=False'
        )
    return form, Form.of(state.part.layout, (), mesh.size)


def _specs(state: Any, forms: tuple[Form, ...], other: P, axes: tuple[str, ...]) -> tuple[P, ...]:
    """Those of the arrays of a state, in the order of its leaves."""
    out: list[P] = []
    for x in jax.tree.leaves(state, is_leaf=_is_parts):
        if not any(form.is_stored(x) for form in forms):
            out += [other] * len(jax.tree.leaves(x))
        else:
            out += [P(axes)] + [P(None, axes)] * (len(jax.tree.leaves(x)) - 1)
    return tuple(out)


def _require_members(state: Any, mesh: Mesh) -> None:
    shape = jnp.shape(state.step) if isinstance(state, TrainState) else state.data.shape[:-1]
    if not shape:
        raise ValueError('how="members" divides an ensemble, made by jax.vmap of TrainState.create, got one member')
    if shape[0] % mesh.size:
        raise ValueError(f"{shape[0]} members cannot be divided equally among {mesh.size} devices")


def _by_patterns(state: Any, mesh: Mesh, patterns: Mapping[str, Any]) -> Any:
    ps = state.ps if isinstance(state, TrainState) else state
    if isinstance(ps, ComponentVector):
        raise TypeError(
            "patterns give axes to the arrays of a tree, got a flat vector: ps, st = lux.setup(key, model, "
            "flat=False), and TrainState.create(model, optimizer, params=ps, state=st)"
        )
    if jnp.ndim(state.step):
        raise ValueError('an ensemble is divided by how="members"')
    chosen = {str(pattern): _spec(pattern, spec, mesh) for pattern, spec in patterns.items()}
    used: set[str] = set()

    def spec_of(path: Any, x: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for pattern, spec in chosen.items():
            if fnmatch.fnmatchcase(name, pattern):
                used.add(pattern)
                _require_divisible(name, x, spec, mesh)
                return spec
        return P()

    leaves, like = jax.tree_util.tree_flatten_with_path(ps)
    of_ps = [spec_of(path, x) for path, x in leaves]
    if unused := chosen.keys() - used:
        names = ", ".join(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves[:8])
        raise ValueError(f"the pattern {sorted(unused)[0]!r} matches no parameter; the first ones are: {names}")

    def is_like(x: Any) -> bool:
        return jax.tree.structure(x) == like

    def specs_of(x: Any) -> list[P]:
        """Those of the parameters, for arrays of their shapes: memory of others, as Adafactor's, is on every device."""
        if not is_like(x):
            return [P()]
        pairs = zip(leaves, jax.tree.leaves(x), of_ps, strict=True)
        return [spec if jnp.shape(mine) == jnp.shape(p) else P() for (_, p), mine, spec in pairs]

    specs = [spec for x in jax.tree.leaves(state, is_leaf=is_like) for spec in specs_of(x)]
    taken = {axis for spec in chosen.values() for axis in axes_of(spec)}
    batch = tuple(axis for axis in mesh.axis_names if axis not in taken)
    return _placed(state, OnMesh(mesh, "patterns", batch, (), tuple(specs)))


def _spec(pattern: Any, value: Any, mesh: Mesh) -> P:
    if not isinstance(value, P | tuple | str):
        raise TypeError(f'the axes of {pattern!r} are a PartitionSpec(None, "model"), got {value!r}')
    spec = P(value) if isinstance(value, str) else P(*value)
    for axis in axes_of(spec):
        if axis not in mesh.axis_names:
            raise ValueError(
                f"{pattern!r} names the axis {axis!r}; the mesh has {', '.join(map(repr, mesh.axis_names))}"
            )
    if len(set(axes_of(spec))) < len(axes_of(spec)):
        raise ValueError(f"{pattern!r} names an axis twice, {spec}: each divides one axis of an array")
    return spec


def _require_divisible(name: str, x: Any, spec: P, mesh: Mesh) -> None:
    try:
        NamedSharding(mesh, spec).shard_shape(jnp.shape(x))
    except (ValueError, IndexError):  # IndexError: more entries than axes
        raise ValueError(
            f"`{name}` of shape {jnp.shape(x)} cannot be divided as {spec} on a mesh of {dict(mesh.shape)}"
        ) from None


def _placed(state: Any, placement: OnMesh) -> Any:
    leaves, structure = jax.tree.flatten(copied(state))
    shardings = [NamedSharding(placement.mesh, spec) for spec in placement.specs]
    state = jax.tree.unflatten(structure, [put(x, s) for x, s in zip(leaves, shardings, strict=True)])
    return state.replace(placement=placement) if isinstance(state, TrainState) else state


@checks_itself
def gather(state: S) -> S:
    """A training state, or a vector, as it was before `shard`: whole, under its own names, on one device.

    Of several processes, each has all of it. Raises `TypeError` for what is neither.

    >>> import lux_sciml as lux
    >>> gather(shard(lux.ComponentVector(a=1, b=[2, 3]), lux.distributed.mesh(), "full"))
    ComponentVector(a=1, b=[2, 3])
    """
    if not isinstance(state, TrainState | ComponentVector):
        raise TypeError(f"what is gathered is a TrainState or a ComponentVector, got {describe(state)}")
    if isinstance(state, ComponentVector):
        whole = jax.tree.map(_on_one_device, state)
        names = [name for name in state.keys() if name != PAD]
        return whole.select(*names) if PAD in state.keys() else whole
    forms: tuple[Form, ...] = getattr(state.placement, "forms", ())
    state = jax.tree.map(_on_one_device, state.replace(placement=HERE))
    for form in forms:
        state = jax.tree.map(
            lambda x, form=form: form.whole(x, named=True) if form.is_stored(x) else x, state, is_leaf=_is_parts
        )
    return state


def _on_one_device(x: Any) -> Any:
    if is_random_key(x):
        return jax.random.wrap_key_data(_on_one_device(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return jnp.asarray(of_all_processes(x, joined=True))
    return jnp.asarray(np.asarray(x))
