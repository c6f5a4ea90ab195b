"""Programs that are kept on disk."""

import os
import subprocess
import sys

import jax
import pytest

import lux_sciml as lux
from lux_sciml._compat import reopen_compilation_cache

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
    value_after, hits, misses = finish(start(tmp_path))
    assert (value_after, misses) == (value, 1)
    assert hits > 2
    assert sorted(folder.glob("*-cache")) == written
    assert broken.stat().st_size > 10


@pytest.fixture
def own_cache():
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reopen_compilation_cache()


@pytest.mark.usefixtures("own_cache")
def test_the_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("kept", "~/kept"):
        assert lux.compilation_cache(folder, max_bytes=1e9).parent == tmp_path / "kept"


@pytest.mark.usefixtures("own_cache")
def test_the_call_removes_what_is_unfinished_and_what_was_used_longest_ago(tmp_path):
    folder = lux.compilation_cache(tmp_path)
    for factor in range(4):
        jax.jit(lambda x, factor=factor: factor * x)(1.0)
    first, second, third, *rest = folder.glob("*-cache")  # a file for each program, and none that grows with them
    assert {path.name for path in folder.iterdir()} == {".tidied", *(x.name for x in (first, second, third, *rest))}
    content = first.read_bytes()
    first.write_bytes(b"")
    second.write_bytes(content[: len(content) // 2])
    os.utime(third, (1.0, 1.0))
    lux.compilation_cache(tmp_path)
    assert sorted(folder.glob("*-cache")) == sorted([third, *rest])
    lux.compilation_cache(tmp_path, max_bytes=sum(x.stat().st_size for x in (third, *rest)) - 1)
    assert sorted(folder.glob("*-cache")) == sorted(rest)


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
