"""Checkpoints written by Orbax: each device's part of an array by itself, read onto other devices."""

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import of_all_processes
from .._libraries import library
from .._tree import is_random_key
from ..components import ComponentMatrix, ComponentVector
from ..components.trees import decode, encode, leaves_by_name
from .checkpoints import Checkpoints

_FILLER = "__metadata__"  # no array has this name; Orbax writes no tree that is empty


class OrbaxCheckpoints(Checkpoints):
    """`Checkpoints` for states that are sharded over devices, or too large for one file, written by Orbax.

    The options are those of `Checkpoints`. Each state is a folder, `step_000000001000.orbax`, in which the parts of an
    array are written as they lie on the devices, without gathering them. The structure, layouts, kinds of random keys,
    shapes and types stand beside them, and are compared with `like` before an array is read; modes come as they were.

    * `load(like=state)` lays each array out as in `like`, over the same number of devices or another: `like` may hold
      `jax.ShapeDtypeStruct(shape, dtype, sharding=...)`. What is not sharded there, and all without `like`, comes to
      the default device, through the host's memory.
    * A length that its devices do not divide is refused: fill the parameters up by a component of their own,
      `ComponentVector(net=ps, pad_=jnp.zeros(-n % devices))`.
    * With `asynchronous=True`, `save` returns once the arrays are in the host's memory.

    A folder gets its name when it is complete; what killed processes left is removed when the next run begins. There is
    no checksum of the arrays beyond those of Orbax. Several processes, joined by `lux.distributed.initialize`, write
    and read together, each the parts of its own devices, in a folder that all of them see.

    Needs `pip install lux-sciml[orbax]`, and raises `ImportError` without it, else as `Checkpoints` does.

    >>> OrbaxCheckpoints("runs/large", every=500, asynchronous=True).path(1000).name
    'step_000000001000.orbax'
    """

    of_processes = True
    _ending = ".orbax"

    def save(self, step: int, tree: Any, metric: float | None = None) -> None:
        """Write a tree, and remove folders that are not to be kept. A lower `metric` is better."""
        self.wait()
        metric = None if metric is None else float(metric)
        document, arrays = encode({"metric": metric, "tree": tree})
        kinds = {name: [x.dtype.name, list(x.shape)] for name, x in arrays.items()}
        about = {"tree": document, "arrays": kinds, "metric": metric}
        full = {name: x if isinstance(x, jax.Array) else np.asarray(x) for name, x in arrays.items() if x.size}
        path, writer = self.path(step).absolute(), _checkpointer()
        if _first() and path.exists():
            path.rename(_aside(path))
        _together()
        try:
            writer.save(path, {**full, _FILLER: np.zeros(1, np.uint8)}, custom_metadata=about)
        except BaseException:
            self._close(writer, path)
            raise
        if not self.asynchronous:
            return self._finish(writer, path)
        self._pending = self._writer.submit(self._finish, writer, path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no other run writes into the folder. Raises `RuntimeError` where one does."""
        _checkpointer().close()  # without Orbax, this is known before the first step
        with contextlib.ExitStack() as stack:
            refused: RuntimeError | None = None
            if _first():
                try:
                    stack.enter_context(super().writing())
                    self._tidy("step_")
                except RuntimeError as error:
                    refused = error
            if _together(refused is not None):
                raise refused or RuntimeError(f"process 0 cannot write checkpoints to {str(self.folder)!r}")
            yield
            self.wait()

    def _finish(self, writer: Any, path: Path) -> None:
        try:
            writer.wait_until_finished()
        finally:
            self._close(writer, path)
        if _first():
            self._prune()

    def _close(self, writer: Any, path: Path) -> None:
        try:
            writer.close()
        finally:
            if _first():
                self._tidy(path.name)

    def _tidy(self, start: str) -> None:
        """Remove what was not completed, and put back what it was to replace, of names that start so."""
        for path in map(self.folder.joinpath, self._names()):
            final = path.with_suffix("")
            if path.name.startswith(start) and f"{self._ending}.orbax-checkpoint-tmp" in path.name:
                self._remove(path)
            elif path.name.startswith(start) and path == _aside(final):
                self._remove(path) if final.exists() else path.rename(final)

    def _read(self, path: Path, like: Any) -> Any:
        if not path.is_dir():
            raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
        try:
            about = self._about(path)
            kinds = {name: (jnp.dtype(dtype), tuple(shape)) for name, (dtype, shape) in about["arrays"].items()}
            leaves = {} if like is None else leaves_by_name(about["tree"], like)
            shardings = {name: _sharding(name, leaf, kinds[name][1]) for name, leaf in leaves.items()}
            if like is not None:
                _compare(about["tree"], kinds, leaves, like)
            target: dict[str, Any] = {_FILLER: np.zeros(1, np.uint8)}
            for name, (dtype, shape) in kinds.items():
                if shardings.get(name) is not None:
                    dtype = jax.dtypes.canonicalize_dtype(dtype)
                    target[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[name])
                else:
                    target[name] = _zeros(shape, dtype)
            reader = _checkpointer()
            with contextlib.closing(reader):
                full = reader.restore(path.absolute(), {name: x for name, x in target.items() if math.prod(x.shape)})
            return decode(about["tree"], {**target, **full}, like)
        except ImportError:
            raise
        except Exception as error:  # of whatever kind a broken folder brings about
            raise ValueError(f"{str(path)!r} cannot be loaded: {error}") from error

    def _metric(self, path: Path) -> Any:
        return self._about(path)["metric"]

    def _about(self, path: Path) -> dict[str, Any]:
        reader = _checkpointer()
        with contextlib.closing(reader):
            about = reader.metadata(path.absolute()).custom_metadata
        if not isinstance(about, dict) or not about.keys() >= {"tree", "arrays", "metric"}:
            raise ValueError("it is no checkpoint of Orbax that OrbaxCheckpoints wrote")
        return about

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def _checkpointer() -> Any:
    return library("orbax.checkpoint", "lux-sciml[orbax]").StandardCheckpointer()


def _first() -> bool:
    """Whether this process is the one that renames and removes."""
    return jax.process_index() == 0


def _together(failed: bool = False) -> bool:
    """Wait for all processes; whether one of them has failed."""
    if jax.process_count() == 1:
        return failed
    return bool(np.any(of_all_processes(np.asarray(failed))))


def _aside(path: Path) -> Path:
    """Where a checkpoint waits while one of the same step is written."""
    return path.with_name(path.name + ".old")


def _sharding(name: str, leaf: Any, shape: tuple[int, ...]) -> Any:
    """How to lay out an array for a leaf; `None` for one that is on one device, and for another shape."""
    x = leaf.data if isinstance(leaf, ComponentVector | ComponentMatrix) else leaf
    x = jax.random.key_data(x) if is_random_key(x) and isinstance(x, jax.Array) else x
    sharding = getattr(x, "sharding", None)
    if sharding is None or len(sharding.device_set) < 2 or shape[: x.ndim] != x.shape:
        return None
    try:
        sharding.shard_shape(shape)
    except ValueError:
        many, spec = len(sharding.device_set), getattr(sharding, "spec", sharding)
        raise ValueError(
            f"`{name}` of shape {shape} is not like `like`, where it lies on {many} devices as {spec}, which do not "
            "divide it: fill it up by a component of its own, ComponentVector(net=ps, pad_=jnp.zeros(-n % devices))"
        ) from None
    return sharding


def _compare(document: str, kinds: dict[str, Any], leaves: dict[str, Any], like: Any) -> None:
    """Raise the differences from `like` before an array is read: what is to come on devices is abstract."""
    on_host = (np.ndarray, np.generic, type(None))
    abstract = {n: jax.ShapeDtypeStruct(kinds[n][1], kinds[n][0]) for n in kinds if not isinstance(leaves[n], on_host)}
    zeros = {n: _zeros(shape, dtype) for n, (dtype, shape) in kinds.items() if n not in abstract}

    def compare(arrays: Any) -> None:
        decode(document, {**zeros, **arrays}, like)

    jax.eval_shape(compare, abstract)


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
