"""What a run tells: to callbacks where it is, and at the end what came out."""

import dataclasses
import functools
from typing import Any

import numpy as np

from .state import TrainState, copied
from .stopping import Best


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """What `fit` returns.

    * `state`: the training state after the last step;
    * `best`: where a validation was made, the parameters and the state with the best value, `best.ps` and `best.st`,
      the value and its step; else `None`;
    * `history`: arrays by name. Of every step: `loss`, the objective's stats, and `finite`; of every validation:
      `validation_step`, `validation_loss`, and the metrics and stats with `validation_` before their names. The members
      of an ensemble are a second axis;
    * `success`: whether the run ended as it was asked to, and not all of its steps were left out;
    * `message`: why it ended, and how many steps were left out;
    * `steps`: how many steps the state has made, those before a resume included.

    >>> import jax.numpy as jnp, optax, lux_sciml as lux
    >>> state = TrainState.create(lux.Scale((2,)), optax.sgd(0.5), params=lux.ComponentVector(scale=[1, 2]))
    >>> def objective(model, ps, st, x):
    ...     return jnp.mean(x) * jnp.sum(ps.scale**2)
    >>> result = lux.fit(objective, state, jnp.ones(8), batch_size=8, steps=3)
    >>> result.steps, result.history["loss"], result.state.ps, result.best is None
    (3, array([5., 0., 0.], dtype=float32), ComponentVector(scale=[0, 0]), True)
    """

    state: TrainState
    best: Best | None
    history: dict[str, np.ndarray]
    success: bool
    message: str
    steps: int

    def __repr__(self) -> str:
        loss = self.history["loss"][-1] if self.steps and "loss" in self.history else np.nan
        return f"FitResult(steps={self.steps}, loss={loss}, success={self.success}, message={self.message!r})"


class FitError(RuntimeError):
    """What data, a callback, the validation or the disk raised in a run; `result` is the `FitResult` so far.

    >>> import jax, jax.numpy as jnp, optax, lux_sciml as lux
    >>> state = lux.TrainState.create(lux.Dense(2, 1), optax.sgd(0.1), key=jax.random.key(0))
    >>> def batches():
    ...     yield jnp.ones((8, 2)), jnp.zeros((8, 1))
    ...     raise OSError("the disk is gone")
    >>> try:
    ...     lux.fit(lux.losses.Objective(lux.losses.mse), state, batches())
    ... except FitError as error:
    ...     error.result.steps
    1
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


class Report:
    """Where a run is: what callbacks are given.

    * `step`, `epoch`: how many were made; `steps` is how many are asked for, where that is known;
    * `stats`: the last step's loss and stats, arrays by name;
    * `validation`: the newest validation's values, `None` before the first;
    * `state`: a copy of the training state, made where it is asked for.

    >>> import jax, jax.numpy as jnp, optax, lux_sciml as lux
    >>> state = lux.TrainState.create(lux.Dense(2, 1), optax.sgd(0.1), key=jax.random.key(0))
    >>> data, objective = (jnp.ones((8, 2)), jnp.zeros((8, 1))), lux.losses.Objective(lux.losses.mse)
    >>> def stop_at_two(report):
    ...     return report.step == 2
    >>> lux.fit(objective, state, data, steps=5, callbacks=stop_at_two, callback_every=1).steps
    2
    """

    def __init__(self, step: int, epoch: int, steps: int | None, stats: Any, validation: Any, state: TrainState):
        self.step, self.epoch, self.steps, self.stats, self.validation = step, epoch, steps, stats, validation
        self._state = state

    @functools.cached_property
    def state(self) -> TrainState:
        return copied(self._state)
