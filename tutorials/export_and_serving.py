# %% [markdown]
# # A trained model, served
#
# A neural ordinary differential equation reads handwritten digits, the 1797 images of 8 x 8 pixels of scikit-learn
# (Alpaydin and Kaynak, UCI, 1998). We train it and take it out of the library: as StableHLO, as ONNX, and as a Python
# file that needs NumPy alone, each for batches of any size, with the adaptive solve inside. Then a server of a few
# lines answers over HTTP. At each step we ask: is it the same function, and how long does an answer take?

# %%
import json
import subprocess
import sys
import tempfile
import threading
import timeit
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import lux_sciml as lux

lux.plot.style()

# %%
EPOCHS, WIDTH = 30, 32
CALLS = 50  # of each way to ask, when they are timed

# %% [markdown]
# ## Train
#
# An image is mapped to 32 numbers, which then follow a differential equation for one unit of time; a linear layer reads
# off the digit. Each image takes its own steps, `batching="vmap"`, so that an answer does not depend on what else is in
# the batch, which is what one wants of a server. 1200 images to train with, 200 to stop by, 397 for the test.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
x, y = (images[order] / 16).astype(np.float32), labels[order]
train, validation, test = ((x[part], y[part]) for part in (slice(1200), slice(1200, 1400), slice(1400, None)))

field = lux.MLP(WIDTH, WIDTH, WIDTH)
solve = lux.NeuralODE(field, ts=[0.0, 1.0], output="final", batching="vmap", rtol=1e-4, atol=1e-4)
model = lux.Chain(lux.Dense(64, WIDTH), solve, lux.Dropout(0.2), lux.Dense(WIDTH, 10))


def objective(model, ps, st, batch):
    logits, st = model(batch[0], ps, st)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), st


state = lux.TrainState.create(model, optax.adam(3e-3), key=jax.random.key(0))
run = lux.fit(objective, state, train, batch_size=100, epochs=EPOCHS, validation=validation)
ps, st = run.best.ps, lux.testmode(run.best.st)


@jax.jit
def predict(x):
    return model(x, ps, st)[0]


expected = np.asarray(predict(test[0]))
print(f"{ps.size} parameters, {np.mean(expected.argmax(-1) == test[1]):.1%} of the test digits")

# %% [markdown]
# ## Three files
#
# `save` goes by the suffix. The example says what an input looks like; its first axis may have any size in the file.

# %%
folder = tempfile.TemporaryDirectory()
paths = {suffix: Path(folder.name) / f"digits{suffix}" for suffix in (".stablehlo", ".onnx", ".py")}
for path in paths.values():
    lux.export.save(path, model, ps, st, test[0][:2], names={"x": "image", "y": "logits"})
    print(f"{path.name:18} {path.stat().st_size / 1e3:6.1f} kB")

served = lux.export.load(paths[".stablehlo"])
print(served)

# %% [markdown]
# StableHLO is the compiler's own language: the loaded function is the program that `jit` compiles, and gives the same
# bits. In ONNX and NumPy the solve is a loop of the same steps, rounded otherwise, and where the step size adapts other
# rounding makes slightly other steps: the difference is of the order of the solver's tolerance, 1e-4 of the values.

# %%
session = onnxruntime.InferenceSession(paths[".onnx"])
sys.path.insert(0, folder.name)
from digits import forward  # noqa: E402, the file that was just written


def by_onnx(x):
    return session.run(["logits"], {"image": x})[0]


ways = {"jit": predict, "StableHLO": served, "ONNX": by_onnx, "NumPy": forward}
for name, way in ways.items():
    difference = max(np.abs(way(test[0][:n]) - predict(test[0][:n])).max() for n in (1, 7, 64))
    print(f"{name:10} largest difference {difference:.1e}, logits up to {np.abs(expected).max():.1f}")

# %% [markdown]
# ## Without the library
#
# What a reader of the file needs: for `.py`, NumPy; for `.stablehlo`, JAX and nothing of ours. In a process of its own:

# %%
np.save(Path(folder.name) / "image.npy", test[0][:3])
alone = """
import sys, numpy as np
from digits import forward
answer = forward(np.load("image.npy"))
print(answer.argmax(-1), "jax" in sys.modules, "lux_sciml" in sys.modules)
"""
print(subprocess.run([sys.executable, "-c", alone], cwd=folder.name, capture_output=True, text=True, check=True).stdout)

# %%
alone = """
import jax.export, numpy as np, sys
exported = jax.export.deserialize(bytearray(open("digits.stablehlo", "rb").read()))
print(exported.call(np.load("image.npy"))[0].argmax(-1), exported.in_avals[0], "lux_sciml" in sys.modules)
"""
print(subprocess.run([sys.executable, "-c", alone], cwd=folder.name, capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# ## A server
#
# The function that `load` gives checks what it is called with, so a server has only to pass it on, and to answer what
# does not fit with the sentence of the error. This one speaks JSON; [the guide](../docs/export.md) has one for the
# KServe protocol of Triton's clients, and the folders of TensorFlow Serving.


# %%
class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            images = np.array(json.loads(text)["image"], np.float32)
            status, answer = 200, {"logits": np.asarray(served(images)).tolist()}
        except (KeyError, TypeError, ValueError) as error:
            status, answer = 400, {"error": str(error)}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("localhost", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(images):
    address = f"http://localhost:{server.server_port}"
    request = urllib.request.Request(address, json.dumps({"image": np.asarray(images).tolist()}).encode())
    with urllib.request.urlopen(request) as answer:
        return np.array(json.load(answer)["logits"], np.float32)


print(np.abs(ask(test[0][:5]) - expected[:5]).max())
try:
    ask(test[0][:5, :60])
except urllib.error.HTTPError as error:
    print(error.code, json.load(error)["error"])

# %% [markdown]
# ## How long an answer takes
#
# The median of the calls, with NumPy arrays in and out, for one image and for 64. A batch of a new size is compiled
# at its first call, which is not counted: a server does it once, at its start.


# %%
def milliseconds(way, x):
    way(x)
    return 1e3 * np.median(timeit.repeat(lambda: np.asarray(way(x)), number=1, repeat=CALLS))


ways["HTTP"] = ask
sizes = (1, 8, 64)
times = {name: [milliseconds(way, test[0][:n]) for n in sizes] for name, way in ways.items()}
print(f"{'ms for':12}" + "".join(f"{n:>4} images" for n in sizes))
for name, row in times.items():
    print(f"{name:12}" + "".join(f"{t:11.2f}" for t in row))
server.shutdown()
folder.cleanup()

# %%
figure, axis = plt.subplots(figsize=(6, 3.6))
for name, row in times.items():
    axis.loglog(sizes, row, "o-", label=name)
axis.set(xlabel="images in a request", ylabel="ms for an answer", xticks=sizes, xticklabels=sizes)
axis.minorticks_off()
_ = axis.legend(fontsize="small")

# %% [markdown]
# ## What to see
#
# A program of XLA, whether `jit` or from the file, answers fastest: it compiles the whole loop of the solve. ONNX and
# NumPy run the loop operation by operation, which takes half a millisecond however few images there are, and needs
# neither JAX nor a compiler where it runs. What HTTP and JSON add is of the same size. The times are those of a
# computer that did other things as well: look at ratios, and at orders of magnitude.
#
# The file from JAX gives the same bits as the model, for the same batch; in batches of another size products of
# matrices are rounded otherwise, as everywhere, and an adaptive solve makes up to its tolerance of it. The server's
# answers to five images differ from those to 397 by that much. Take fixed steps, `diffrax.ConstantStepSize`, where all
# formats are to agree to seven digits.
#
# Next: SavedModel for TensorFlow Serving, TFLite for small devices, gradients as files, and servers for Triton's
# clients are in [the guide](../docs/export.md); a net inside another program's loop in [A learned closure in a Fortran
# code](c_in_fortran.ipynb).
