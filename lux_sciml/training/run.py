"""A run of fit: steps in chunks that are short, and what is done between them."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components.trees import ANYTHING
from ..core import Layer
from ..core.parameters import parameter_layout
from ..core.walk import walk
from ..nn import Stack
from ..optimize.chunks import LONGEST, SECONDS
from ..optimize.problem import called, not_finite
from ..optimize.progress import display, is_true
from .advance import Programs
from .batches import Arrays, Stream, one_key
from .checkpoints import Checkpoints
from .interrupts import Interrupts
from .result import FitError, FitResult, Report
from .state import TrainState, copied
from .stopping import EarlyStopping, Watch
from .validation import Validation

MOST_LOST = 100  # steps in a row that are not finite
MOST_ROWS = 1 << 20  # samples in the order of one chunk
GROWTH = 64  # at most so many times as long is the next chunk


@dataclasses.dataclass(eq=False)
class Run:
    """One run: called, it returns the result."""

    objective: Any
    state: TrainState
    batches: Arrays | Stream
    epochs: int | None
    steps: int | None
    accumulate: int
    nonfinite: str
    validation: Any
    validate_every: int | None
    metrics: Mapping[str, Callable[..., Any]]
    early_stopping: EarlyStopping | None
    callbacks: Sequence[Callable[[Report], Any]]
    callback_every: int | None
    checkpoints: Checkpoints | None
    resume: bool
    progress: bool
    log: Any

    def __post_init__(self) -> None:
        members, self.place = jnp.shape(self.state.step), self.state.placement
        if self.checkpoints is not None and self.place.processes > 1 and not self.checkpoints.of_processes:
            raise TypeError("several processes write checkpoints together by lux.training.OrbaxCheckpoints(folder)")
        if isinstance(self.batches, Arrays) and self.batches.resident:
            self.batches.data = self.place.everywhere(self.batches.data)
        if not self.place.first:
            self.log, self.progress = None, False
        self.ensemble, padded = bool(members), self.batches.last == "pad"
        options = (self.accumulate, self.nonfinite, self.ensemble, padded)
        beside = (self.state.model, self.state.optimizer)
        self.programs = Programs.of(self.objective, self.metrics, beside, *options)
        if self.validation is not None:
            size = getattr(self.batches, "batch_size", None)
            self.validation = Validation(self.validation, size, padded, self.programs.evaluate, self.place)
        self.state = copied(self.state.replace(skipped=jnp.zeros_like(self.state.skipped)))  # those of this run
        self.first = self.step = int(np.max(self.state.step))
        self.watch = Watch(self.early_stopping, members)
        self.lost_in_a_row = np.zeros(members, np.int64)
        self.history: dict[str, list[np.ndarray]] = {}
        self.validated: dict[str, list[np.ndarray]] = {}
        self.logged = (0, 0)  # steps and validations that are in a row of the log
        self.row_written = -np.inf
        self.length, self.compiled = 1, False
        self.raised: BaseException | None = None
        self.due = False  # a validation, which was not made yet
        self.saved = self.step  # the newest step that needs no checkpoint any more
        self._order: tuple[int, Any, Any] = (0, np.zeros((0, 0)), np.zeros(0))
        self.total = self._total()

    def _total(self) -> int | None:
        """The step at which the run ends, where that is known."""
        per_epoch = self.batches.per_epoch
        if self.steps is not None:
            return self.first + self.steps
        if self.epochs is not None:
            return None if per_epoch is None else self.first + self.epochs * per_epoch
        if isinstance(self.batches, Stream) and self.batches.once:
            return None
        raise ValueError("how long? Give `epochs` or `steps`")

    # --- the run ---------------------------------------------------------------------------------------------------

    def __call__(self) -> FitResult:
        with contextlib.ExitStack() as stack:
            if self.checkpoints is not None:
                stack.enter_context(self.checkpoints.writing())
                self._begin(self.checkpoints)
            self.interrupts = stack.enter_context(Interrupts())
            self.bar = (
                display("fit", None if self.total is None else self.total - self.first) if self.progress else None
            )
            if self.bar is not None:
                stack.callback(self.bar.close)
                self.bar.update(self.step - self.first)
            if self.log is not None:
                self.log.start(self.step - self.first)
                stack.callback(self.log.close)
            success, message, raised = self._outcome(self._loop)
            alone = raised is not None and self.place.processes > 1  # the others do not come to the end
            last = self._outcome(lambda: self._at_the_end(success)) if not alone else (True, "", None)
            if not last[0] and raised is None:
                success, message, raised = last
            lost = int(np.max(self.state.skipped))
            if lost and self.nonfinite == "stop" and self.ensemble and success:
                many = int(np.count_nonzero(self.state.skipped))
                message += f"; {many} of the members stopped, as their loss or gradient was not finite"
            if lost and self.nonfinite != "stop":
                message += f"; {lost} steps were left out, as the loss or its gradient was not finite"
                if success and np.all(self.state.skipped == self.step - self.first):
                    success, message = False, message + self._not_finite()
        result = FitResult(
            state=self.state,
            best=self.watch.best,
            history=self._arrays(),
            success=success,
            message=message,
            steps=self.step - self.first,
        )
        if raised is not None:
            raise FitError(f"{message}; `error.result` has the state so far", result) from raised.__cause__
        return result

    def _outcome(self, work: Callable[[], tuple[bool, str]]) -> tuple[bool, str, BaseException | None]:
        """What `work` returns, and what it raised that is not to cost the state."""
        try:
            return (*work(), None)
        except KeyboardInterrupt:
            return False, f"interrupted after {self.step - self.first} steps", None
        except _OfOthers as error:
            return False, f"{error}, after {self.step - self.first} steps", error

    def _loop(self) -> tuple[bool, str]:
        if self.due:
            self._validate()
        while True:
            if self.raised is not None:
                raise self.raised
            ended = self._ended()
            if ended is not None:
                return ended
            limit, asked = self.place.agreed(min(self.length, *self._boundaries()), self.interrupts.asked)
            if asked:
                raise KeyboardInterrupt
            start = time.perf_counter()
            stats, made, epoch_ended = self._advance(limit)
            self._pace(made, time.perf_counter() - start)
            if made:
                self.step += made
                self._note(stats)
            stop = self._between(made, epoch_ended)
            if stop:
                return True, f"stopped by a callback after {self.step - self.first} steps"

    def _not_finite(self) -> str:
        """What is not finite, as the end of a sentence."""
        batches = self.batches if isinstance(self.batches, Arrays) and self.place.processes == 1 else None
        data = {"data": batches.data} if batches is not None and batches.resident else {}
        return not_finite(self.objective, ps=self.state.ps, st=self.state.st, **data)

    def _ended(self) -> tuple[bool, str] | None:
        made = self.step - self.first
        if self.watch.stops and not self.watch.active.any():
            rule = self.watch.rule
            return True, f"stopped early: `{rule.monitor}` was not better in {rule.patience} validations"
        if self.nonfinite == "stop" and np.all(self.state.skipped, where=self.watch.active):
            where = self._not_finite()
            return False, f"stopped at step {made}, whose loss or gradient is not finite{where}"
        if made and np.all(self.lost_in_a_row[self.watch.active] >= MOST_LOST):
            where = self._not_finite()
            return False, (
                f"after {made} steps, of {MOST_LOST} in a row the loss or the gradient is not finite{where}: lower the "
                "learning rate, clip the gradient, or check the data"
            )
        if self.total is not None and self.step >= self.total:
            return True, f"all {made} steps made"
        if isinstance(self.batches, Stream) and self.epochs is not None and self.batches.epoch >= self.epochs:
            return True, f"all {made} steps made"
        if isinstance(self.batches, Stream) and self.batches.once and self.batches.epoch:
            return self.steps is None and self.epochs is None, f"the data ended after {made} steps"
        return None

    def _boundaries(self) -> list[int]:
        """In how many steps something is to be done."""
        periods = [self.callback_every, self.validate_every, self.checkpoints and self.checkpoints.every]
        if self.validation is not None and self.validate_every is None and isinstance(self.batches, Arrays):
            periods.append(self.batches.per_epoch)
        out = [period - self.step % period for period in periods if period]
        return [*out, LONGEST] if self.total is None else [*out, self.total - self.step]

    def _pace(self, made: int, seconds: float) -> None:
        """How many steps the next chunk may have: `SECONDS` long. The first chunk compiles, and is not timed."""
        if made and self.compiled:
            self.length = max(1, min(LONGEST, GROWTH * self.length, int(SECONDS * made / seconds)))
        self.compiled |= made > 0

    # --- steps -----------------------------------------------------------------------------------------------------

    def _advance(self, limit: int) -> tuple[dict[str, np.ndarray], int, bool]:
        """At most `limit` steps: their stats, how many, and whether an epoch has ended."""
        active = self.watch.active if self.ensemble else None
        if isinstance(self.batches, Arrays) and self.looped:
            batches = self.batches
            width = 1 if batches.whole else batches.batch_size
            most = max(1, min(LONGEST, MOST_ROWS // width, (self.total or LONGEST) - self.first))
            limit = min(limit, most)
            rows, sizes = self._rows(batches, limit, most)
            self.state, kept = self.programs.chunk(self.state, active, batches.data, rows, sizes, limit)
            self._rows_ahead(batches, limit, most)
            stats = {name: np.asarray(x)[:limit] for name, x in kept.items()}
            return stats, limit, self.step % batches.per_epoch + limit >= batches.per_epoch
        pending, epoch_ended = [], False
        for i in range(limit):
            batch = self._next(i)
            if batch is None or self.raised is not None:
                epoch_ended = self.raised is None
                break
            try:
                self.state, stats = self.programs.single(self.state, active, batch)
            except Exception as error:  # of a batch unlike those before
                if self.step + i == self.first:
                    raise
                self.raised = _of_others("objective", error)
                break
            pending.append(stats)
        if isinstance(self.batches, Arrays):
            epoch_ended = self.step % self.batches.per_epoch + len(pending) >= self.batches.per_epoch
        found = jax.device_get(pending)
        stats = {name: np.stack([stats[name] for stats in found]) for name in (found[0] if found else ())}
        return stats, len(pending), epoch_ended

    @functools.cached_property
    def looped(self) -> bool:
        """Whether chunks are one program; the same for each run of an objective, which other bits might not be."""
        batches = self.batches
        if not isinstance(batches, Arrays) or not batches.resident:
            return False
        active = self.watch.active if self.ensemble else None
        return self.programs.belongs_in_a_loop(self.state, active, batches.kind())

    def _next(self, i: int) -> Any:
        """The batch of the step `i` of a chunk; `None` at the end of an epoch, and where `raised` is set."""
        if isinstance(self.batches, Arrays):
            rows, sizes = self.batches.rows(self.step + i, 1)
            batch = self.batches.batch(rows[0], int(sizes[0]))
            return batch if self.batches.resident else self.place.joined(batch, whole=True)
        try:
            with self.interrupts.at_once():
                before = self.batches.position
                batch = self.batches.next()
            joined = self.place.joined(batch)
            if joined is None and batch is not None:
                self.batches.end_epoch()
            if joined is None and not before and i == 0:
                raise ValueError("the data yield no batches")
            return joined
        except KeyboardInterrupt as error:
            self.raised = error
        except Exception as error:
            self.raised = _of_others("data", error)
        return None

    def _rows(self, batches: Arrays, limit: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of the next steps, filled up to what the program takes."""
        first, rows, sizes = self._order
        if not first <= self.step <= self.step + limit <= first + len(rows):
            first, (rows, sizes) = self.step, batches.rows(self.step, limit)
        here = slice(self.step - first, self.step - first + limit)
        fill = most - limit
        return np.pad(rows[here], ((0, fill), (0, 0))), np.pad(sizes[here], (0, fill))

    def _rows_ahead(self, batches: Arrays, limit: int, most: int) -> None:
        """Find the samples of the chunk that comes next, while the device computes."""
        start = self.step + limit
        many = min(most, GROWTH * limit, most if self.total is None else self.total - start)
        first, rows, _ = self._order
        if many > 0 and not first <= start < start + many <= first + len(rows):
            self._order = (start, *batches.rows(start, many))

    # --- between steps ---------------------------------------------------------------------------------------------

    def _note(self, stats: dict[str, np.ndarray]) -> None:
        finite = stats["finite"]
        if self.nonfinite == "stop" and not self.ensemble and not finite.all():
            more = self.step - int(self.state.step)  # after the last one that the state has made
            self.step -= more
            stats = {name: x[: len(finite) - more] for name, x in stats.items()}
            finite = stats["finite"]
        trailing = np.where(finite.any(0), np.argmax(finite[::-1], 0), len(finite))
        self.lost_in_a_row = np.where(finite.any(0), trailing, self.lost_in_a_row + trailing)
        for name, x in stats.items():
            self.history.setdefault(name, []).append(x)

    def _between(self, made: int, epoch_ended: bool) -> bool:
        """What is done between chunks; whether a callback asks to stop."""
        due = epoch_ended if self.validate_every is None else made and self.step % self.validate_every == 0
        if self.validation is not None and due:
            self.due = True
            self._validate()
        if self.checkpoints is not None and made and self.step % self.checkpoints.every == 0:
            self._save(self.checkpoints)
        if self.bar is not None and made:
            self.bar.set_postfix(loss=f"{np.mean(self.history['loss'][-1][-1]):.4g}", refresh=False)
            self.bar.update(made)
        self._write_row(at_once=bool(self.validation is not None and due))
        if not made or not self.callbacks or (self.callback_every and self.step % self.callback_every):
            return False
        report = self._report()
        stop = False
        for callback in self.callbacks:
            with _blamed("callback"), self.interrupts.at_once():
                stop |= is_true(called("callback", callback, ("report",), report))
        return self.place.agreed(0, stop)[1]

    def _report(self) -> Report:
        stats = {name: x[-1][-1] for name, x in self.history.items()}
        validation = {name: x[-1] for name, x in self.validated.items()} or None
        steps = None if self.total is None else self.total - self.first
        return Report(self.step - self.first, self._epoch(), steps, stats, validation, self.state)

    def _epoch(self) -> int:
        batches = self.batches
        return batches.epoch if isinstance(batches, Stream) else (self.step - self.first) // batches.per_epoch

    def _validate(self) -> None:
        with _blamed("validation"):
            with self.interrupts.at_once():
                values = self.validation(self.state)
            self.watch.see(self.state, values, self.step - self.first)
        self.due = False
        for name, x in {"validation_step": np.asarray(self.step - self.first), **values}.items():
            self.validated.setdefault(name, []).append(x)

    def _at_the_end(self, success: bool) -> tuple[bool, str]:
        """The last checkpoint, and then the last validation, which a longer run would not make at this step."""
        if self.checkpoints is not None:
            if self.step != self.saved:
                self._save(self.checkpoints)
            with _blamed("checkpoints"):
                self.checkpoints.wait()
        if success and self.validation is not None and self.step > self.first:
            if not self.validated or self.validated["validation_step"][-1] != self.step - self.first:
                self._validate()
        if success:
            self._write_row(at_once=True)
        return True, ""

    def _write_row(self, at_once: bool) -> None:
        """The means since the last row of the log."""
        if self.log is None or not self.history:
            return
        if not at_once and time.monotonic() - self.row_written < SECONDS:
            return
        columns, made, seen = self._arrays(), self.step - self.first, len(self.validated.get("validation_step", ()))
        values = {name: columns[name][self.logged[0] :].mean(0) for name in self.history if made > self.logged[0]}
        if seen > self.logged[1]:
            values |= {name: x[-1] for name, x in self.validated.items() if name != "validation_step"}
        members = self.watch.active.shape
        row: dict[str, float] = {}
        for name, x in values.items():
            if np.shape(x) == ():
                row[name] = float(x)
            elif np.shape(x) == members:
                row |= {f"{name}[{i}]": float(x[i]) for i in range(members[0])}
        if row:
            with _blamed("log"):
                self.log.write(self.step - self.first, self._epoch(), row)
        self.logged, self.row_written = (made, seen), time.monotonic()

    def _arrays(self) -> dict[str, np.ndarray]:
        out = {name: np.concatenate(x) for name, x in self.history.items()}
        for name, x in out.items():
            self.history[name] = [x]
        return out | {name: np.stack(x) for name, x in self.validated.items()}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, checkpoints: Checkpoints) -> None:
        arrays = self._arrays()
        run = {
            "first": self.first,
            "history": {name: arrays[name] for name in self.history},
            "validated": {name: arrays[name] for name in self.validated},
            "watch": self.watch.place(),
            "lost_in_a_row": self.lost_in_a_row,
            "due": self.due,
            "data": self._kind_of_data(),
            "rows": _rows_of_stacks(self.state.model),
            "place": self.batches.place() if isinstance(self.batches, Stream) else None,
        }
        metric = self._metric() if checkpoints.keep_best else None
        with _blamed("checkpoints"):
            checkpoints.save(self.step, {"state": self.state, "run": run}, metric)
        self.saved = self.step

    def _metric(self) -> float | None:
        """How good the state is: what is watched of the validation, of an ensemble the best; lower is better."""
        if self.validation is None:
            return None
        fresh = self.validated and self.validated["validation_step"][-1] == self.step - self.first
        with _blamed("validation"):
            values = {name: x[-1] for name, x in self.validated.items()} if fresh else self.validation(self.state)
            return self.watch.cost(values)

    def _kind_of_data(self) -> dict[str, Any]:
        if isinstance(self.batches, Stream):
            return {}
        return {name: getattr(self.batches, name) for name in ("n", "batch_size", "shuffle", "last")}

    def _begin(self, checkpoints: Checkpoints) -> None:
        """From the newest checkpoint, or from the start."""
        there = checkpoints.steps()
        if there and not self.resume:
            raise ValueError(
                f"{str(checkpoints.folder)!r} has checkpoints of a run, up to step {there[-1]}: resume=True goes on "
                "with it; else take another folder"
            )
        if not there:
            return
        tree = checkpoints.load(like={"state": self.state, "run": ANYTHING})
        run = tree["run"]
        if run["data"] != self._kind_of_data():
            raise ValueError(
                f"the run that is resumed had data of {run['data']}, and these are {self._kind_of_data()}: with others "
                "it would not be the same run; start from `state` in a folder of its own"
            )
        rows = _rows_of_stacks(self.state.model)
        if (before := run.get("rows", rows)) != rows:
            raise ValueError(f"the run that is resumed had stacks with rows of {before}, and these are {rows}")
        self.state, self.first = copied(tree["state"]), run["first"]
        self.step = self.saved = int(np.max(self.state.step))
        self.history = {name: [x] for name, x in run["history"].items()}
        self.validated = {name: list(x) for name, x in run["validated"].items()}
        self.logged = (self.step - self.first, len(self.validated.get("validation_step", ())))
        self.watch.go_to(run["watch"])
        self.lost_in_a_row, self.due = run["lost_in_a_row"], self.validation is not None and run.get("due", False)
        self.batches.key = copied(one_key(self.state.key))
        if isinstance(self.batches, Stream):
            self.batches.go_to(run["place"])
        self.total = self._total()


def _rows_of_stacks(model: Layer) -> list[str]:
    """What stands in the rows of stacks with flat rows: their matrices do not say."""
    out = []
    for path, layer in walk(model):
        if isinstance(layer, Stack) and layer.flat_rows:
            layout = parameter_layout(layer.layer)
            out.append(f"{path}: " + ", ".join(f"{layout.name(leaf.path)} {leaf.shape}" for leaf in layout.leaves))
    return out


class _OfOthers(Exception):
    """What data, callbacks, the validation or the disk raised."""


@contextlib.contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Inside, what is raised is told to be of this part of the run."""
    try:
        yield
    except Exception as error:
        raise _of_others(what, error) from error


def _of_others(what: str, error: Exception) -> _OfOthers:
    out = _OfOthers(f"the {what} raised {type(error).__name__}: {error}")
    out.__cause__ = error
    return out
