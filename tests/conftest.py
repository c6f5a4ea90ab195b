"""Tests run strict: 64-bit numbers available, no implicit type promotion, two virtual CPU devices.

The switches are set for each test, so that the doctests, in the same process, run with JAX's defaults.
"""

import gc
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)

# Nearly all the time goes into compiling small programs, each run a few times: XLA's quick ways are enough for them.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # later versions do not have the choice
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
gc.set_threshold(50_000)
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt themselves; the background ignores it
TESTS = itertools.count(1)


CORE = """
components/test_vector core/test_layer nn/test_nn nn/test_stack diffeq/test_neural_ode equilibrium/test_deep_equilibrium
training/test_step
""".split()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    """The mark `gpu`; of a test marked `exhaustive` with several cases the first is not."""
    core, seen = [Path(__file__).parent / f"{name}.py" for name in CORE], set()
    for item in items:
        if item.path in core:
            item.add_marker("gpu")
        function = getattr(item, "function", None)
        many = any(mark.name == "exhaustive" for mark in getattr(function, "pytestmark", ())) and item.nodeid[-1] == "]"
        if many and function not in seen:
            seen.add(function)
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "exhaustive"]


@pytest.fixture(autouse=True)
def strict():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True)
def same_random_numbers(request):
    """From a file's own `RNG` and from PyTorch: whoever runs alone sees what the whole run sees."""
    generator = getattr(getattr(request.node, "module", None), "RNG", None)
    if generator is not None:
        generator.bit_generator.state = np.random.default_rng(0).bit_generator.state
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def of_one_file():
    """The programs compiled for one file are of no use to the next."""
    yield
    forget_programs()


@pytest.fixture(autouse=True)
def bounded_memory():
    """Nor are those of long files to their end."""
    yield
    if next(TESTS) % 120 == 0:
        forget_programs()


def forget_programs():
    eqx.clear_caches()
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def run_script():
    """A function that runs a script to its end with this package, in a folder, and returns what it printed."""

    def run(script, cwd, **environment):
        paths = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **environment, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, str(script)], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param
