# %% [markdown]
# # Training on many devices
#
# A network is trained on eight devices: first with its parameters on each of them, then with each device holding an
# eighth of parameters, gradient and optimizer. What is the same as on one device, and what memory does it save? The
# devices are virtual, parts of this computer's processor, so that all of it runs anywhere; on GPUs the lines are the
# same. The data are the 1797 handwritten digits of 8 x 8 pixels of scikit-learn (Alpaydin and Kaynak, UCI, 1998). In
# the end eight networks are trained at once, one on each device, as an ensemble.
#
# The number of virtual devices is set before JAX computes anything. `NPROC` gives XLA threads enough: on a processor
# with few cores eight devices might otherwise wait for one another for ever. Leave both lines out on GPUs.

# %%
import os

os.environ["NPROC"] = "32"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import lux_sciml as lux

lux.plot.style()

# %%
EPOCHS, BATCH = 20, 128
WIDTH, BLOCKS = 128, 6
MEMBER_EPOCHS = 40

# %% [markdown]
# ## Data and model
#
# 1200 digits to train with, 200 to stop by, 397 for the test. The blocks are equal, and so they can be a `Stack`: with
# `flat_rows=True` the parameters of each are one row of a matrix, and with `checkpoint=True` what a block computes is
# computed again in the backward pass, in place of being kept.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
x, y = (images[order] / 16).astype(np.float32), labels[order]
train, validation, test = ((x[part], y[part]) for part in (slice(1200), slice(1200, 1400), slice(1400, None)))

block = lux.SkipConnection(lux.Chain(lux.LayerNorm(WIDTH), lux.MLP(WIDTH, WIDTH, WIDTH, jax.nn.gelu)), jnp.add)
model = lux.Chain(
    embed=lux.Dense(64, WIDTH),
    blocks=lux.Stack(block, BLOCKS, flat_rows=True, checkpoint=True),
    norm=lux.LayerNorm(WIDTH),
    head=lux.Dense(WIDTH, 10),
)


def objective(model, ps, st, batch):
    logits, st = model(batch[0], ps, st)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), st


optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, EPOCHS * 9), weight_decay=1e-2)
start = lux.TrainState.create(model, optimizer, key=jax.random.key(0))
mesh = lux.distributed.mesh()
print(mesh)

# %% [markdown]
# ## The same run, in three ways
#
# `shard` says where a training state lies. Nothing else changes: `fit` and the objective are those of one device. The
# objective sees the whole batch, so that a mean is a mean; it is the compiler that divides the work.

# %%
states = {
    "one device": start,
    "replicated": lux.distributed.shard(start, mesh, "replicated"),
    "full": lux.distributed.shard(start, mesh, "full"),
}
runs = {how: lux.fit(objective, state, train, batch_size=BATCH, epochs=EPOCHS) for how, state in states.items()}

alone = runs["one device"]
for how, run in runs.items():
    ps = lux.distributed.gather(run.state).ps if how != "one device" else run.state.ps
    losses = np.abs(run.history["loss"] - alone.history["loss"]).max()
    logits = model(validation[0], ps, lux.testmode(start.st))[0]
    print(f"{how:10}  losses differ by {losses:.1e} at most; {np.mean(logits.argmax(-1) == validation[1]):.1%} valid")

# %% [markdown]
# The losses of all steps agree as far as the order of sums lets them: a mean over eight parts is rounded otherwise than
# one over the whole, and training makes more of it from step to step. There is no other difference: the batches, the
# random keys and the steps of the optimizer are the same.
#
# ## What each device holds
#
# We count the bytes of a training state on the first device, and ask XLA what else the compiled step takes there: its
# temporary memory, with activations and gradients.


# %%
def held(state):
    parts = [part for array in jax.tree.leaves(state) for part in array.addressable_shards]
    return sum(part.data.nbytes for part in parts if part.device == jax.devices()[0])


def temporary(state):
    batch = tuple(a[:BATCH] for a in train)
    if state is not start:
        batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("devices")))
    return lux.train_step(objective).lower(state, batch).compile().memory_analysis().temp_size_in_bytes


memory = {how: (held(state) / 1e6, temporary(state) / 1e6) for how, state in states.items()}
print(f"{start.ps.size} parameters; MB on the first device")
for how, (state, rest) in memory.items():
    print(f"{how:10}  state {state:5.2f}  temporary {rest:5.2f}")

# %% [markdown]
# Whether a model fits on some GPUs is better asked before they are rented. `estimate` is the formula: bytes of each
# device for the state, for what a step needs beside the activations, and what it sends. With Adam in float32, and 48
# blocks as rows:

# %%
for size in (1e8, 1e9, 1e10):
    for how, rows in (("replicated", 0), ("full", 48)):
        cells = [lux.distributed.estimate(size, n, how, rows=rows) for n in (1, 8, 64)]
        needed = "".join(f"{(cell.state + cell.work) / 1e9:9.2f}" for cell in cells)
        print(f"{size:.0e} parameters, {how:10} on 1, 8, 64 devices: {needed} GB each")

# %% [markdown]
# ## Eight networks, one on each device
#
# Small models do not need many devices, but a set of them may. `jax.vmap` over keys makes eight training states, and
# with `"members"` each is trained where it lies, without a word between devices. The average of their probabilities is
# compared with a single network, and with a support vector machine, which is hard to beat on these digits. Each member
# is kept at its best validation loss; the test set is looked at here, once.

# %%
keys = jax.random.split(jax.random.key(1), 8)
small = lux.Chain(
    lux.Dense(64, WIDTH, jax.nn.gelu), lux.Dropout(0.3), lux.Dense(WIDTH, WIDTH, jax.nn.gelu), lux.Dense(WIDTH, 10)
)
members = jax.vmap(lambda key: lux.TrainState.create(small, optax.adam(2e-3), key=key))(keys)
members = lux.distributed.shard(members, mesh, "members")
run = lux.fit(objective, members, train, batch_size=BATCH, epochs=MEMBER_EPOCHS, validation=validation)
best = run.best


@jax.jit
def probabilities(x):
    logits = jax.vmap(lambda ps, st: small(x, ps, lux.testmode(st))[0])(best.ps, best.st)
    return jax.nn.softmax(logits, -1)


each = np.asarray(probabilities(test[0]))
machine = SVC(C=10.0, gamma=0.1).fit(
    np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
)
whole = lux.distributed.gather(runs["full"].state).ps
deep = np.asarray(jax.nn.softmax(model(test[0], whole, lux.testmode(start.st))[0], -1))


def scores(p):
    return np.mean(p.argmax(-1) == test[1]), -np.mean(np.log(p[np.arange(len(p)), test[1]]))


single = np.array([scores(p) for p in each])
print(f"{'':26}accuracy  -log likelihood")
print(f"{'deep network':26}{scores(deep)[0]:8.1%}{scores(deep)[1]:17.3f}")
print(f"{'one small network, mean':26}{single[:, 0].mean():8.1%}{single[:, 1].mean():17.3f}")
print(f"{'eight small networks':26}{scores(each.mean(0))[0]:8.1%}{scores(each.mean(0))[1]:17.3f}")
print(f"{'support vector machine':26}{machine.score(*test):8.1%}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for (how, r), style in zip(runs.items(), ("k-", "C0--", "C1:"), strict=True):
    left.semilogy(r.history["loss"], style, label=how)
left.set(xlabel="step", ylabel="loss", title="one run, three ways")
left.legend(fontsize="small")
places = np.arange(len(memory))
bottom = [state for state, _ in memory.values()]
right.bar(places, bottom, label="parameters and optimizer")
right.bar(places, [rest for _, rest in memory.values()], bottom=bottom, label="temporary, in a step")
right.set(xticks=places, xticklabels=memory, ylabel="MB", title="memory of the first device")
right.margins(y=0.35)
_ = right.legend(fontsize="small")

# %% [markdown]
# ## What to see
#
# Left, three curves that are one. The largest difference of the losses, over all steps, is a few units in the last
# place of float32. Right, what dividing saves: with `"full"` each device holds an eighth of parameters and Adam's two
# vectors, and needs less besides, for one block at a time is gathered, and gradients are divided as they come.
# `"replicated"` saves no memory; what it divides is the work on a batch.
#
# What the picture does not say is how fast this is: virtual devices share the cores of one processor, and a collective
# there costs nothing like one between GPUs. The estimate's `moved` counts what is sent.
#
# All networks read the digits equally well, within the error of 397 of them, 0.6%, and none better than the support
# vector machine. What the ensemble buys are better probabilities, by a little.
#
# Next: several processes, runs that go on when one is killed, and parameters divided along the axes of their arrays are
# in [Many devices](../docs/devices.md), checkpoints in [Training](../docs/training.md).
