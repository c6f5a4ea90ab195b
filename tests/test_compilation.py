"""Programs that are kept on disk."""

import os
import subprocess
import sys

import jax
import pytest

import lux_sciml as lux

SCRIPT = """
import sys, jax, jax.numpy as jnp, lux_sciml as lux
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
lux.compilation_cache(sys.argv[1])
node = lux.NeuralODE(lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2)), ts=[0.0, 1.0], output="final")
ps, st = lux.setup(jax.random.key(0), node)
loss = jax.jit(jax.value_and_grad(lambda ps: jnp.sum(node(jnp.ones((3, 2)), ps, st)[0])))
value = loss(ps)[0]
cell = lux.Parallel(jnp.add, lux.Dense(4, 4, use_bias=False), lux.Dense(3, 4))
deq = lux.DeepEquilibrium(lux.Chain(cell, jnp.tanh), 4)
ps, st = lux.setup(jax.random.key(0), deq)
jax.jit(jax.grad(lambda ps: jnp.sum(deq(jnp.ones((2, 3)), ps, st)[0])))(ps)
print(float(value), *(found.count(f"/jax/compilation_cache/cache_{kind}") for kind in ("hits", "misses")))
"""


def start(folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_FLAGS")}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    value, hits, misses = out.split()
    return float(value), int(hits), int(misses)


@pytest.mark.exhaustive
def test_a_second_process_compiles_nothing(tmp_path):
    together = [start(tmp_path), start(tmp_path)]  # two at once write to one folder
    (value, *_), (same, *_) = map(finish, together)
    assert same == value
    (folder,) = tmp_path.iterdir()
    written = sorted(folder.glob("*-cache"))
    broken = written[0]
    broken.write_bytes(broken.read_bytes()[:10])  # as by a process that was killed
    broken.with_name(broken.name.removesuffix("-cache") + "-atime").unlink()
    value_after, hits, misses = finish(start(tmp_path))
    assert (value_after, misses) == (value, 1)
    assert hits > 2
    assert sorted(folder.glob("*-cache")) == written
    assert broken.stat().st_size > 10


def test_the_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        for folder in ("kept", "~/kept"):
            assert lux.compilation_cache(folder, max_bytes=1e9).parent == tmp_path / "kept"
    finally:
        jax.config.update("jax_enable_compilation_cache", False)


@pytest.mark.parametrize(
    ("size", "kind", "sentence"),
    [
        ("1GB", TypeError, "expected a number, got '1GB'"),
        (None, TypeError, "expected a number, got None"),
        (True, TypeError, "expected a number of bytes, such as 1e9, got True"),
        (0, ValueError, "1 or more and finite, such as 1e9, got 0"),
        (float("inf"), ValueError, "1 or more and finite, such as 1e9, got inf"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, size, kind, sentence):
    with pytest.raises(kind, match=f"^max_bytes: .*{sentence}"):
        lux.compilation_cache(tmp_path, max_bytes=size)


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=f"cannot be in {folder}: {tmp_path}/file is a file; give another"):
            lux.compilation_cache(folder)
    with pytest.raises(OSError, match=f"cannot be in {tmp_path}/x+: File name too long; give another folder"):
        lux.compilation_cache(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match=r"^folder: expected the name of a folder, .* got ''"):
        lux.compilation_cache("")
    with pytest.raises(TypeError, match=r"^folder: expected the name of a folder, .* got 100"):
        lux.compilation_cache(100)
