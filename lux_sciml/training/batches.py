"""Batches: arrays in a shuffled order, and what yields batches by itself, each from any place on."""

import contextlib
import importlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe
from ..core.converters import count

RESIDENT = 1 << 30  # bytes of data that are kept on the device
ORDERS = 1 << 13  # samples that are shuffled at once
LAST = ("drop", "pad")


class Padded(NamedTuple):
    """A batch with `last="pad"`: `mask` `(batch_size,)` is false where `data` is repeated to fill the last batch.

    >>> import optax, lux_sciml as lux
    >>> state = lux.TrainState.create(lux.Scale((1,)), optax.sgd(0.1), key=jax.random.key(0))
    >>> def objective(model, ps, st, batch):
    ...     y, st = model(batch.data, ps, st)
    ...     return jnp.mean(y, where=batch.mask[:, None]), st, {"samples": jnp.sum(batch.mask)}
    >>> lux.fit(objective, state, jnp.ones((5, 1)), batch_size=2, epochs=1, last="pad").history["samples"].tolist()
    [2, 2, 1]
    """

    data: Any
    mask: Any


class Arrays:
    """A pytree of arrays with samples along their first axes, cut into batches in an order that the key gives."""

    def __init__(self, data: Any, batch_size: int | None, shuffle: bool, last: str, key: jax.Array):
        self.n = samples(data)
        if not self.n:
            raise ValueError(f"the data have no samples, got {describe(data)}")
        self.batch_size = count(self.n if batch_size is None else batch_size)
        self.last, self.key = last, key
        self.per_epoch = -(-self.n // self.batch_size) if last == "pad" else self.n // self.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f'there are {self.n} samples for batches of {self.batch_size}: take smaller ones, or last="pad"'
            )
        self.shuffle, self.whole = shuffle, self.batch_size == self.n
        self.resident = sum(x.nbytes for x in jax.tree.leaves(data)) <= RESIDENT
        self.data = jax.tree.map(jnp.asarray, data) if self.resident else data
        self._orders = (-1, np.zeros((1, 0), np.int32))  # of which group of epochs, and what they are

    def rows(self, first: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of some steps of a run `(steps, batch_size)`, and how many of each are none to fill.

        Where all samples are one batch, `(steps, 0)`: they come as they are.
        """
        if self.whole:
            return np.zeros((steps, 0), np.int32), np.full(steps, self.n, np.int32)
        rows = np.zeros((steps, self.batch_size), np.int32)
        sizes = np.full(steps, self.batch_size, np.int32)
        done = 0
        while done < steps:
            epoch, position = divmod(first + done, self.per_epoch)
            many = min(steps - done, self.per_epoch - position)
            start = position * self.batch_size
            chosen = self._permutation(epoch)[start : start + many * self.batch_size]
            rows[done : done + many].reshape(-1)[: len(chosen)] = chosen
            done += many
            sizes[done - 1] -= many * self.batch_size - len(chosen)
        return rows, sizes

    def _permutation(self, epoch: int) -> np.ndarray:
        """The order of an epoch; those of short ones are found some at once."""
        if not self.shuffle:
            return np.arange(self.n, dtype=np.int32)
        many = max(1, ORDERS // self.n)
        group, place = divmod(epoch, many)
        if self._orders[0] != group:
            generator = np.random.Generator(np.random.Philox(key=number(self.key), counter=group << 192))
            short = many > 1
            orders = np.argsort(generator.random((many, self.n))) if short else generator.permutation(self.n)[None]
            self._orders = (group, orders.astype(np.int32))
        return self._orders[1][place]

    def batch(self, rows: np.ndarray, size: int) -> Any:
        """The batch of some samples."""
        data = self.data if self.whole else jax.tree.map(lambda x: x[rows], self.data)
        return Padded(data, np.arange(self.batch_size) < size) if self.last == "pad" else data

    def kind(self) -> Any:
        """The shapes and dtypes of a batch."""
        n = self.batch_size
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), self.data)
        return Padded(data, jax.ShapeDtypeStruct((n,), bool)) if self.last == "pad" else data


class Stream:
    """Batches of an iterable or iterator: a PyTorch DataLoader, a Grain dataset or loader, a generator.

    An iterable is iterated anew in each epoch; one of PyTorch's is shuffled by the key. It goes on from where a run
    stood by its own `get_state` and `set_state`, as Grain has them, or else by leaving out what was seen.
    """

    def __init__(self, data: Any, last: str, key: jax.Array):
        self.source, self.last, self.key = data, last, key
        self.once = iter(data) is data and not hasattr(data, "get_state")
        self.per_epoch: int | None = None
        with contextlib.suppress(TypeError, NotImplementedError):  # a loader of unknown length may have a `__len__` too
            self.per_epoch = len(data)
        self.epoch, self.position, self.size = 0, 0, 0
        self._iterator: Iterator[Any] | None = None
        self._before: Any = None  # the iterator's state before the batch that comes next

    def next(self) -> Any:
        """The next batch of this epoch, as NumPy arrays; `None` at its end, after which the next one begins."""
        while True:
            try:
                if self._iterator is None:
                    with _torch_seed(self.source, number(self.key) + self.epoch):
                        self._iterator = iter(self.source)
                        batch = next(self._iterator)
                else:
                    batch = next(self._iterator)
            except StopIteration:
                self.end_epoch()
                return None
            batch = jax.tree.map(np.asarray, batch)
            size = samples(batch)
            self.size = self.size or size
            if size > self.size:
                raise ValueError(f"the first batch has {self.size} samples, and a later one {size}")
            if size < self.size and self.last == "drop":
                continue
            self.position += 1
            if self.last == "pad":
                rows = np.arange(self.size)
                return Padded(jax.tree.map(lambda x, rows=rows, n=size: x[rows % n], batch), rows < size)
            return batch

    def end_epoch(self) -> None:
        """Leave out what is left of this epoch."""
        self.epoch, self.position, self._iterator = self.epoch + 1, 0, None

    def place(self) -> dict[str, Any]:
        """Where the stream is, as a tree for a file."""
        state = self._iterator.get_state() if hasattr(self._iterator, "get_state") else None  # pyright: ignore
        if isinstance(state, bytes):
            state = np.frombuffer(state, np.uint8)
        elif state is not None:
            state = json.dumps(state)
        return {"epoch": self.epoch, "position": self.position, "size": self.size, "state": state}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go on from a place."""
        self.epoch, position, self.size = place["epoch"], place["position"], place["size"]
        state = place["state"]
        if state is not None:
            self._iterator = iter(self.source)
            state = state.tobytes() if isinstance(state, np.ndarray) else json.loads(state)
            self._iterator.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
            self.position = position
            return
        for _ in range(position):
            if self.next() is None:
                raise ValueError(f"the data end before batch {position}, where the run that is resumed stood")


def source(data: Any, batch_size: Any, shuffle: bool, last: str, key: jax.Array) -> "Arrays | Stream":
    """The batches of what a user has. Raises `TypeError` for what is neither arrays nor yields batches."""
    if last not in LAST:
        raise ValueError(f"last is 'drop' or 'pad', got {last!r}")
    key, data = one_key(key), as_arrays(data)
    if is_arrays(data):
        return Arrays(data, batch_size, shuffle, last, key)
    nothing_else = hasattr(data, "__next__") or (hasattr(data, "__iter__") and jax.tree_util.all_leaves([data]))
    if nothing_else and not isinstance(data, str | bytes):
        if batch_size is not None:
            raise ValueError("what yields batches has their size already: leave `batch_size` out")
        return Stream(data, last, key)
    raise TypeError(
        "data are arrays with samples along their first axis, a tree of them such as (x, y), or yield batches, as a "
        f"PyTorch DataLoader, a Grain dataset or a generator do; got {describe(data)}"
    )


def as_arrays(data: Any) -> Any:
    """What other libraries have for arrays, tensors of PyTorch's and tables of pandas, as NumPy's."""
    if hasattr(data, "__next__"):
        return data
    known = np.ndarray | jax.Array
    return jax.tree.map(lambda x: np.asarray(x) if hasattr(x, "__array__") and not isinstance(x, known) else x, data)


def is_arrays(data: Any) -> bool:
    """Whether data are an array or a tree of arrays."""
    if hasattr(data, "__next__"):  # which JAX does not take
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(isinstance(x, np.ndarray | jax.Array) for x in leaves)


def one_key(key: jax.Array) -> jax.Array:
    """The key that orders the data: of an ensemble, the first member's."""
    return key if not jnp.ndim(key) else key[0]


def number(key: jax.Array) -> int:
    """A number of at most 128 bits that stands for a random key."""
    return int.from_bytes(np.asarray(jax.random.key_data(key)).tobytes()[:16], "little")


def samples(data: Any) -> int:
    """How many samples arrays have along their first axes; `ValueError` where these are not equal."""
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"all arrays have the samples along their first axis, and equally many, got {describe(data)}; a list of "
            "batches is passed as iter(batches)"
        )
    return int(next(iter(sizes))[0])


class _torch_seed:
    """Inside, PyTorch's random numbers begin at a seed, if the data are a DataLoader of PyTorch's."""

    def __init__(self, data: Any, seed: int):
        self.torch = None
        if any(cls.__module__.partition(".")[0] == "torch" for cls in type(data).__mro__):
            self.torch: Any = importlib.import_module("torch")
            self.before, self.seed = self.torch.get_rng_state(), seed % 2**63
            if getattr(data, "generator", None) is not None:
                data.generator.manual_seed(self.seed)

    def __enter__(self) -> None:
        if self.torch is not None:
            self.torch.manual_seed(self.seed)

    def __exit__(self, *_: Any) -> None:
        if self.torch is not None:
            self.torch.set_rng_state(self.before)
