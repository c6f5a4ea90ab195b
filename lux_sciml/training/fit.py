"""fit: the loop around the training step."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._tree import describe
from ..core.converters import checks_itself, converted, count, flag, optional
from .batches import source
from .checkpoints import Checkpoints
from .logs import as_log
from .result import FitResult, Report
from .run import Run
from .state import TrainState
from .step import Objective
from .stopping import EarlyStopping


@checks_itself
def fit(
    objective: Objective,
    state: TrainState,
    data: Any,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    shuffle: bool = True,
    last: str = "drop",
    accumulate: int = 1,
    nonfinite: str = "skip",
    validation: Any = None,
    validate_every: int | None = None,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Callable[[Report], Any] | Sequence[Callable[[Report], Any]] | None = None,
    callback_every: int | None = None,
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    log: Any = None,
) -> FitResult:
    """Train on batches: the loop around `train_step`, with nothing that could not be written with it.

    * `objective(model, ps, st, batch)`: as for `train_step`: returns the loss, `(loss, st)` or `(loss, st, stats)`.
    * `state`: a `TrainState`, which stays as it is; one with a first axis, made by `jax.vmap` of `TrainState.create`,
      is an ensemble: all members see the same batches, and each has a history and a stopping rule of its own.
    * `data`: an array or a tree of arrays, `(x, y)`, with samples along their first axes; or what yields batches: a
      PyTorch DataLoader, a Grain dataset or loader, any iterable, each epoch anew, or iterator. Arrays of up to 1 GiB
      are put on the device, and short steps are run many in one program.
    * `batch_size`: of arrays; all samples by default.
    * `epochs`, `steps`: how long, in all: a state that is resumed goes on to the same end. One of them; neither is
      needed for an iterator, which ends by itself.
    * `shuffle`: whether arrays come in another order in each epoch, by the state's key.
    * `last`: a last batch that is smaller is left out with `"drop"`; with `"pad"`, the objective is given
      `batch.data`, filled with copies, and `batch.mask`, false at these. With `accumulate`, all of a part may be such:
      divide by at least 1, as the mean of none is NaN and the step would be left out.
    * `accumulate`, `nonfinite`: as for `train_step`. After 100 steps in a row that were not finite, a run ends.
    * `validation`: data as above, all of which are evaluated, by `learned` parameters (the average, where there is
      one) in test mode, after each epoch, or after every `validate_every` steps of the state. What is reported is the
      mean over the samples.
    * `metrics`: functions `metric(model, ps, st, batch)` by name, of a batch of the validation.
    * `early_stopping`: an `EarlyStopping`, after which the run ends.
    * `callbacks`: functions of a `Report`, called about ten times a second (after every step where one takes longer),
      or after the steps of the state that are multiples of `callback_every`; the run ends where one returns `True`.
    * `checkpoints`: a `lux.training.Checkpoints`, or a folder.
    * `resume`: go on from the newest checkpoint, if there is one: with the same arguments, the result is the same, bit
      for bit, as that of a run that was not broken off.
    * `progress`: show a progress bar in a terminal or notebook, and elsewhere, as in a log, a line every ten seconds.
    * `log`: the path of a `.csv` file, or a folder for TensorBoard, or an object like `lux.training.CSVLog`.

    What the objective, the metrics, the model and the optimizer read besides their arguments is read anew by each call;
    where it is known and as it was, nothing compiles again. Ctrl-C ends a run after the steps under way, with the
    result so far; again, at once. What data, callbacks, the validation or the disk raise comes as a `FitError`, whose
    `result` has the state so far. In both cases a checkpoint is written, where the disk takes it.

    Raises `TypeError` and `ValueError` for arguments that are wrong or contradict each other, `RuntimeError` where
    another run writes to the checkpoints.

    >>> import jax, jax.numpy as jnp, optax, lux_sciml as lux
    >>> model = lux.Chain(lux.Dense(1, 16, jnp.tanh), lux.Dense(16, 1))
    >>> def objective(model, ps, st, batch):
    ...     y, st = model(batch[0], ps, st)
    ...     return jnp.mean((y - batch[1]) ** 2), st
    >>> x = jnp.linspace(-1.0, 1.0, 256)[:, None]
    >>> state = TrainState.create(model, optax.adam(1e-2), key=jax.random.key(0))
    >>> result = fit(objective, state, (x, jnp.sin(3 * x)), batch_size=32, epochs=100)
    >>> result.message, result.history["loss"].shape, bool(result.history["loss"][-1] < 1e-2)
    ('all 800 steps made', (800,), True)
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"fit takes a TrainState, TrainState.create(model, optimizer, ...), got {describe(state)}")
    for name, value in {
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": steps,
        "validate_every": validate_every,
    }.items():
        converted(name, optional(count), value)
    for name, value in {"shuffle": shuffle, "resume": resume, "progress": progress}.items():
        converted(name, flag, value)
    if epochs is not None and steps is not None:
        raise ValueError("give `epochs` or `steps`, not both")
    if metrics is not None and not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise TypeError(f"metrics are a dict of functions of (model, ps, st, batch), got {describe(metrics)}")
    if metrics is not None and validation is None:
        raise ValueError("metrics are of the validation: give `validation=`")
    if taken := {"loss", "step"} & (metrics or {}).keys():
        raise ValueError(f"the history has a `validation_{min(taken)}` already: give the metric another name")
    if early_stopping is not None and (validation is None or not isinstance(early_stopping, EarlyStopping)):
        raise ValueError("early stopping is an EarlyStopping, and watches the validation: give `validation=`")
    if early_stopping is not None and not early_stopping.monitor.startswith("validation_"):
        raise ValueError(
            "early stopping watches a value of the validation, such as 'validation_loss', got "
            f"{early_stopping.monitor!r}"
        )
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = Checkpoints(checkpoints)
    if checkpoints is not None and not callable(getattr(checkpoints, "writing", None)):
        raise TypeError(f"checkpoints are lux.training.Checkpoints, or the path of a folder, got {checkpoints!r}")
    if resume and checkpoints is None:
        raise ValueError("resume=True goes on from checkpoints: give `checkpoints=`")
    callbacks = [callbacks] if callable(callbacks) else list(callbacks or ())
    if not all(map(callable, callbacks)):
        raise TypeError("callbacks are functions of a Report")
    run = Run(
        objective=objective,
        state=state,
        batches=source(data, batch_size, shuffle, last, state.key),
        epochs=epochs,
        steps=steps,
        accumulate=accumulate,
        nonfinite=nonfinite,
        validation=validation,
        validate_every=validate_every,
        metrics=metrics or {},
        early_stopping=early_stopping,
        callbacks=callbacks,
        callback_every=converted("callback_every", optional(count), callback_every),
        checkpoints=checkpoints,
        resume=resume,
        progress=progress,
        log=as_log(log),
    )
    return run()
