"""Checkpoints: the files of a run, of which some are kept, written by one process at a time."""

import concurrent.futures
import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..components import load, save
from ..components.files import read_entry
from ..components.trees import ANYTHING
from ..core.converters import checks_itself, count, flag, natural
from .state import copied


class Checkpoints:
    """A folder with the states of a run, each in a file of its own, `step_000000001000.safetensors`.

    * `folder`: made where it is not there;
    * `every`: the number of steps between two of them; one more is written at the end of a run;
    * `keep_last`: how many of the last ones are kept;
    * `keep_best`: how many of those with the best `metric` are kept beside them: in `lux.fit` the value that early
      stopping watches, else the validation's loss;
    * `asynchronous`: the arrays are copied, and written by another thread while the run goes on. Each is waited for
      before the next, and at the end.

    Files are written whole or not at all: a process that is killed leaves the ones before. While `lux.fit` runs, or
    inside of `with checkpoints.writing():`, a lock keeps other processes from writing into the folder; it goes with the
    process. `checkpoints.load(like=state)` reads the newest file that can be read. Raises `RuntimeError` where another
    run writes to the folder, `FileNotFoundError` where there is nothing to load.

    >>> import tempfile, lux_sciml as lux
    >>> checkpoints = Checkpoints(tempfile.mkdtemp(), keep_last=2)
    >>> with checkpoints.writing():
    ...     for step in (10, 20, 30):
    ...         checkpoints.save(step, {"ps": lux.ComponentVector(a=step)})
    >>> checkpoints.steps(), checkpoints.load()["ps"].a
    ([20, 30], Array(30., dtype=float32))
    """

    of_processes = False  # whether several processes write together
    _ending = ".safetensors"

    @checks_itself
    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int = 1000,
        keep_last: int = 2,
        keep_best: int = 0,
        asynchronous: bool = False,
    ):
        self.folder, self.every = Path(folder), count(every)
        self.keep_last, self.keep_best = count(keep_last), natural(keep_best)
        self.asynchronous = flag(asynchronous)
        self._pending: concurrent.futures.Future[None] | None = None
        self._writer = concurrent.futures.ThreadPoolExecutor(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, every={self.every}, keep_last={self.keep_last})"

    def steps(self) -> list[int]:
        """The steps that there are files of, in order."""
        name = re.compile(rf"step_(\d{{12}}){re.escape(self._ending)}")
        return sorted(int(found[1]) for found in map(name.fullmatch, self._names()) if found)

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step_{step:012d}{self._ending}"

    def save(self, step: int, tree: Any, metric: float | None = None) -> None:
        """Write a tree, and remove files that are not to be kept. A lower `metric` is better."""
        self.wait()
        tree = {"metric": None if metric is None else float(metric), "tree": tree}
        if not self.asynchronous:
            return self._write(step, tree)
        self._pending = self._writer.submit(self._write, step, copied(tree))

    def wait(self) -> None:
        """Wait for what another thread writes. Raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, step: int | None = None, like: Any = None) -> Any:
        """The tree of a step, by default of the newest file that can be read; `like` is as for `lux.load`.

        Raises `FileNotFoundError` where there is none, `ValueError` for a tree that is not like `like`, and where none
        can be read. Warns of newer files that cannot.
        """
        self.wait()
        steps = self.steps() if step is None else [step]
        if not steps:
            raise FileNotFoundError(f"there are no checkpoints in {str(self.folder)!r}")
        like = None if like is None else {"metric": ANYTHING, "tree": like}
        for i, newest in enumerate(reversed(steps)):
            try:
                return self._read(self.path(newest), like)["tree"]
            except ValueError as error:
                if i + 1 == len(steps) or "is not like" in str(error):
                    raise
                warnings.warn(f"{error}; the checkpoint before it is taken", stacklevel=2)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no other process writes into the folder. Raises `RuntimeError` where one does."""
        import filelock

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RuntimeError(
                f"another run writes checkpoints to {str(self.folder)!r}: give each a folder of its own"
            ) from None
        try:
            yield
        finally:
            try:
                self.wait()
            finally:
                lock.release()

    def _names(self) -> list[str]:
        return os.listdir(self.folder) if self.folder.is_dir() else []

    def _write(self, step: int, tree: Any) -> None:
        save(self.path(step), tree)
        self._prune()

    def _prune(self) -> None:
        steps = self.steps()
        kept = set(steps[-self.keep_last :])
        if self.keep_best:
            known: dict[int, float] = {}
            for step in steps:
                with contextlib.suppress(ValueError, KeyError):  # of a file that was damaged it is not known
                    known[step] = self._metric(self.path(step))
            known = {step: metric for step, metric in known.items() if metric is not None and not math.isnan(metric)}
            kept |= set(sorted(known, key=known.__getitem__)[: self.keep_best])
        for step in set(steps) - kept:
            self._remove(self.path(step))

    def _read(self, path: Path, like: Any) -> Any:
        return load(path, like)

    def _metric(self, path: Path) -> Any:
        return read_entry(path, "metric")

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
