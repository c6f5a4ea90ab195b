"""PyTorch's and Grain's loaders in fit, and runs on them that are resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lux_sciml as lux
from lux_sciml.training import Checkpoints

X = np.random.default_rng(0).normal(size=(22, 2)).astype(np.float32)
MODEL = lux.Dense(2, 1)


class Source:
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]

    def __repr__(self):  # by which Grain knows it again
        return "Source"


def torch_loader():
    torch = pytest.importorskip("torch")
    torch.seed()  # the order is by the state's key, whatever is before
    return torch.utils.data.DataLoader(torch.tensor(X), batch_size=4, shuffle=True), 3


def grain_dataset():
    grain = pytest.importorskip("grain.python")
    return grain.MapDataset.source(Source()).seed(1).shuffle().to_iter_dataset().batch(4), 3


def grain_loader():
    grain = pytest.importorskip("grain.python")
    sampler = grain.IndexSampler(22, grain.NoSharding(), shuffle=True, num_epochs=3, seed=1)
    return grain.DataLoader(data_source=Source(), sampler=sampler, operations=[grain.Batch(4)], worker_count=0), 1


def objective(model, ps, st, batch):
    y, st = model(batch, ps, st)
    return jnp.mean((y - 1) ** 2), st, {"first": batch[0]}


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", [torch_loader, grain_dataset, grain_loader])
def test_loaders_and_their_place_in_a_run(make, tmp_path):
    def run(folder, at=()):
        def callback(report):
            if report.step in at:
                raise KeyboardInterrupt

        data, epochs = make()
        checkpoints = Checkpoints(tmp_path / folder, every=3)
        options = dict(epochs=epochs, callbacks=callback, callback_every=1, checkpoints=checkpoints, resume=True)
        state = lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(3))
        return lux.fit(objective, state, data, **options)

    with jax.enable_x64(False):
        whole, parts = run("whole"), [run("parts", at=(at,)) for at in (4, 7)]
        end = run("parts")
        assert [part.steps for part in parts] == [4, 7] and end.steps == whole.steps >= 15
        assert np.array_equal(end.state.ps, whole.state.ps)
        assert np.array_equal(end.history["first"], whole.history["first"])
        if make is torch_loader:
            assert len({tuple(x) for x in whole.history["first"].tolist()}) > 5, "each epoch has an order of its own"


class OfUnknownLength:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):  # as PyTorch's DataLoader of an IterableDataset
        raise TypeError("object of type 'IterableDataset' has no len()")


class Tensor:
    """As PyTorch's: it can be iterated, row by row, and is an array."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)

    def __array__(self, *args, **kwargs):
        return self.x


def test_loaders_of_unknown_length_and_tensors_of_other_libraries():
    with jax.enable_x64(False):
        state = lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(3))
        loader = OfUnknownLength([X[:4], X[4:8]])
        assert lux.fit(objective, state, loader, epochs=3).steps == 6
        options = dict(batch_size=11, epochs=2, shuffle=False)
        ours = lux.fit(objective, state, X, validation=X, **options)
        theirs = lux.fit(objective, state, Tensor(X), validation=Tensor(X), **options)
        for name in ("loss", "validation_loss"):
            assert np.array_equal(ours.history[name], theirs.history[name])
