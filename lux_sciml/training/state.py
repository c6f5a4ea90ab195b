"""TrainState: all that a training run carries from one step to the next."""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._tree import describe, is_inexact, is_random_key, single
from ..components import ComponentVector
from ..components.nodes import Path
from ..core import Layer, Mode, setup
from ..core.converters import checks_itself
from ..core.mode import modes
from ..core.printing import brief
from ..core.setup import as_key
from ..optimize.part import Part
from .placement import HERE, Placement

FIRST_LOSS_SCALE = 2.0**15
MODES = "in test mode: dropout is off and running statistics stay as they are"


class LossScale(NamedTuple):
    """What losses in float16 are multiplied by, so that their gradients do not vanish; it follows their overflows.

    >>> import lux_sciml as lux
    >>> state = TrainState.create(lux.Dense(2, 3), optax.adam(1e-3), key=jax.random.key(0), dtype=jnp.float16)
    >>> float(state.loss_scale.scale)
    32768.0
    """

    scale: jax.Array
    good: jax.Array  # steps since it changed


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainState:
    """Parameters, state, and all else that a training run carries from one step to the next, as one pytree.

    * `ps`, `st`: parameters and state, as of `lux.setup`;
    * `opt_state`: the optimizer's memory;
    * `step`: how many steps were made;
    * `key`: the random key that shuffles the data in `lux.fit`; random layers have keys of their own in `st`;
    * `ema`: the exponential moving average of the parameters, in float32 at least, where `create` asks for it, else
      `None`;
    * `update_scale`: what each update is multiplied by, 1 at the start: a learning rate over that of the optimizer;
    * `skipped`: how many steps were left out since their loss or gradient was not finite;
    * `loss_scale`: in float16, what the loss is multiplied by, else `None`.

    Static are `model`, `optimizer`, `part` (what `trainable` chose), `decay` (of the average), `dtype` (of mixed
    precision) and `placement` (over many devices, by `lux.distributed.shard`). `TrainState.create` makes one;
    `state.replace(ps=...)` changes it; `jax.vmap` of `create` over keys makes an ensemble.

    >>> import lux_sciml as lux
    >>> state = TrainState.create(lux.Dense(2, 3), optax.adam(1e-3), key=jax.random.key(0))
    >>> state
    TrainState(step=0, ps=ComponentVector[9], model=Dense(2, 3))
    """

    ps: Any
    st: Any
    opt_state: Any
    step: Any
    key: Any
    ema: Any
    update_scale: Any
    skipped: Any
    loss_scale: LossScale | None
    model: Layer
    optimizer: optax.GradientTransformationExtraArgs
    part: Part | None
    decay: float | None
    dtype: Any
    placement: Placement = HERE

    @staticmethod
    @checks_itself
    def create(
        model: Layer,
        optimizer: optax.GradientTransformation | optax.MultiSteps,
        *,
        key: jax.Array | None = None,
        params: Any = None,
        state: Any = None,
        trainable: str | Sequence[str | Path] | None = None,
        ema: float | None = None,
        dtype: Any = None,
    ) -> "TrainState":
        """The state at the start of a run.

        * `model`: the layer that the objective is given;
        * `optimizer`: any optax transformation, with clipping and schedules chained to it, or an `optax.MultiSteps`;
        * `key`: makes parameters and state by `lux.setup(key, model)` where they are not given, and shuffles the data;
        * `params`, `state`: those to start from; they are copied, since steps reuse the memory of what they are given;
        * `trainable`: patterns of the components to train, as for `Layout.match`, `"head.*"`; the optimizer sees no
          others. Needs a ComponentVector;
        * `ema`: the decay d of an average of the parameters, a <- d a + (1 - d) p after each step, 0.999 say;
        * `dtype`: mixed precision: the objective is given parameters and floating-point arrays of the batch in this
          type, `jnp.bfloat16` or `jnp.float16`, while `ps`, the gradients and the optimizer keep their own. In float16
          the loss is scaled: twice as much after 2000 good steps, half as much where the gradients overflow.

        Raises `TypeError` where there is neither a key nor parameters and for what is no layer or optimizer,
        `KeyError` for a pattern that matches nothing. Warns of a state in test mode.

        >>> import lux_sciml as lux
        >>> model = lux.Chain(body=lux.Dense(2, 3), head=lux.Dense(3, 1))
        >>> state = TrainState.create(model, optax.adam(1e-3), key=jax.random.key(0), trainable="head")
        >>> state.ps.size, state.opt_state[0].mu.size
        (13, 4)
        """
        if not isinstance(model, Layer):
            raise TypeError(f"a TrainState is of a layer, TrainState.create(model, optimizer, ...), got {model!r}")
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(f"the optimizer is one of optax, such as optax.adam(1e-3), got {optimizer!r}")
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"ema is the decay of an average, at least 0 and below 1, 0.999 say, got {ema}")
        if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype is the floating-point type to compute in, such as jnp.bfloat16, got {dtype!r}")
        if key is None and params is None:
            raise TypeError("give `key=jax.random.key(seed)`, which makes the parameters, or `params=` and `state=`")
        key = jax.random.key(0) if key is None else as_key(key)
        if params is None or state is None:
            made, st = setup(key, model)
            params, state = made if params is None else params, st if state is None else state
        if _only_testing(state):
            warnings.warn(f"the state is {MODES}; `lux.trainmode(st)` is for training", stacklevel=2)
        part = None if trainable is None else Part.of(params, trainable)
        with jax.numpy_dtype_promotion("standard"):
            memory = optimizer.init(params if part is None else part.take(params))
        scaled = dtype is not None and jnp.dtype(dtype) == jnp.float16
        none = jnp.array(0, jnp.int32)
        loss_scale = LossScale(jnp.array(FIRST_LOSS_SCALE, jnp.float32), none) if scaled else None
        average = None if ema is None else single(params)  # in half precision its steps would be lost
        arrays = (params, state, memory, none, key, average, jnp.array(1.0, jnp.float32), none, loss_scale)
        optimizer = optax.with_extra_args_support(optimizer)
        static = (model, optimizer, part, ema, None if dtype is None else jnp.dtype(dtype), HERE)
        entries: dict[str, Any] = dict(zip((*ARRAYS, *STATIC), (*copied(_on_device(arrays)), *static), strict=True))
        return TrainState(**entries)

    def replace(self, **changes: Any) -> "TrainState":
        """The same state with some entries changed. Raises `TypeError` for unknown names."""
        return dataclasses.replace(self, **changes)

    def adjust(self, **hyperparameters: Any) -> "TrainState":
        """The state with other hyperparameters of the optimizer from now on; nothing is traced or compiled again.

        `update_scale` multiplies all updates, whatever the optimizer. Others are those of an optimizer inside of
        `optax.inject_hyperparams`: `state.adjust(learning_rate=1e-4)`. For an ensemble they are arrays, one entry for
        each member. Raises `ValueError` for those that the optimizer does not have, or that follow a schedule.

        >>> import lux_sciml as lux
        >>> optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
        >>> state = TrainState.create(lux.Dense(2, 3), optimizer, key=jax.random.key(0))
        >>> state.adjust(learning_rate=0.5).opt_state.hyperparams["learning_rate"]
        Array(0.5, dtype=float32)
        """
        changes = {}
        if "update_scale" in hyperparameters:
            value = hyperparameters.pop("update_scale")
            changes["update_scale"] = _in_place_of(self.update_scale, value, "update_scale")
        leaves, structure = jax.tree_util.tree_flatten_with_path(self.opt_state)
        paths, values = map(list, zip(*leaves, strict=True)) if leaves else ([], [])
        for name, value in hyperparameters.items():
            found = [i for i, path in enumerate(paths) if _is_hyperparameter(path, name)]
            if not found:
                raise ValueError(
                    f"the optimizer's memory has no hyperparameter `{name}`: make the optimizer by "
                    f"optax.inject_hyperparams(optax.adam)({name}=...), or adjust `update_scale`, which all have"
                )
            if any(_is_of_a_schedule(path, name) for path in paths):
                raise ValueError(
                    f"`{name}` follows a schedule, which would overwrite it in the next step: adjust `update_scale`, "
                    "which multiplies the updates"
                )
            for i in found:
                values[i] = _in_place_of(values[i], value, name)
        memory = jax.tree.unflatten(structure, values)
        return self.replace(opt_state=memory, **changes)

    @property
    def learned(self) -> Any:
        """The parameters to test and to keep, in the precision of `ps`: the average, where there is one, else `ps`."""
        if self.ema is None:
            return self.ps
        same = all(a.dtype == p.dtype for a, p in zip(jax.tree.leaves(self.ema), jax.tree.leaves(self.ps), strict=True))
        return self.ema if same else jax.tree.map(lambda a, p: a.astype(p.dtype), self.ema, self.ps)

    def __repr__(self) -> str:
        step = self.step if jnp.shape(self.step) else int(self.step) if hasattr(self.step, "item") else self.step
        shape = self.ps.shape if isinstance(self.ps, ComponentVector) else ()
        ps = f"ComponentVector{list(shape)}" if shape else describe(self.ps)
        return f"TrainState(step={step}, ps={ps}, model={brief(self.model)})"


STATIC = ("model", "optimizer", "part", "decay", "dtype", "placement")
ARRAYS = tuple(field.name for field in dataclasses.fields(TrainState) if field.name not in STATIC)
jax.tree_util.register_dataclass(TrainState, ARRAYS, STATIC)


def _on_device(tree: Any) -> Any:
    return jax.tree.map(lambda x: x if is_random_key(x) else jnp.asarray(x), tree)


def copied(tree: Any) -> Any:
    """A tree in memory of its own, each leaf apart: what is donated is used again."""

    def copy(x: Any) -> Any:
        if is_random_key(x):
            return jax.random.wrap_key_data(copy(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if isinstance(x, bool | int | float | str | np.ndarray):
            return x
        return jnp.array(x, jnp.asarray(x).dtype, copy=True)  # with the dtype: nothing is weakly typed

    return jax.tree.map(copy, tree)


def _only_testing(st: Any) -> bool:
    return modes(st) == {Mode.TEST}


def _is_hyperparameter(path: Any, name: str) -> bool:
    """Of an optimizer in `optax.inject_hyperparams`, not an entry of its memory that has the same name."""
    return _names(path)[-2:] == ["hyperparams", name]


def _is_of_a_schedule(path: Any, name: str) -> bool:
    names = _names(path)
    return any(pair == ("hyperparams_states", name) for pair in itertools.pairwise(names))


def _names(path: Any) -> list[Any]:
    return [getattr(entry, "name", getattr(entry, "key", None)) for entry in path]


def _in_place_of(old: Any, value: Any, name: str) -> jax.Array:
    new = jnp.asarray(value)
    if new.shape not in ((), old.shape) or not (is_inexact(old) or new.dtype == old.dtype):
        raise ValueError(f"`{name}` is {describe(old)}, got {describe(new)}")
    return jnp.array(jnp.broadcast_to(new, old.shape), old.dtype, copy=True)  # which a step may donate
