"""C source against JAX: compiled by the system's compiler and called from Python, C, C++ and Fortran."""

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import set_up
from source_operations import bytes_of, elementwise, loops_and_branches, moving, of_types, samples, solves

import lux_sciml as lux
from lux_sciml.export import c_source, read_metadata

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1")
CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")

NET = lux.Chain(lux.Dense(4, 33, jnp.tanh), lux.Dense(33, 7, jax.nn.gelu), lux.Dense(7, 3))


@pytest.fixture
def net():
    ps, st, _ = set_up(NET)
    return ps, st


def compiled(path):
    """The library of a file, under a new name: one that is loaded is not loaded again."""
    library = path.with_name(f"{len(list(path.parent.glob('*.so')))}.so")
    subprocess.run([CC, *STRICT, "-shared", "-fPIC", path, "-o", library, "-lm"], check=True)
    return ctypes.CDLL(str(library))


def call(function, *arguments):
    """Calls a C function with numbers and arrays."""
    function(*(ctypes.c_int(x) if isinstance(x, int) else x.ctypes.data_as(ctypes.c_void_p) for x in arguments))


def check(folder, f, arrays, *, batch_axis=0, rtol=1e-6, jvp=True, vjp=True, **options):
    """Compares the functions of the C file of `f(*arrays)` with JAX; returns the library."""
    c_source(folder / "f.c", lambda xs: f(*xs), x=arrays, jvp=jvp, vjp=vjp, batch_axis=batch_axis, **options)
    library, rng = compiled(folder / "f.c"), np.random.default_rng(0)
    n = [] if batch_axis is None else [len(arrays[0])]

    def tangents(values):
        return [rng.normal(size=np.shape(x)).astype(x.dtype) for x in values]

    def close(expected, *arguments, of):
        outputs = [np.full(y.shape, 7, y.dtype) for y in expected]
        call(getattr(library, f"f_{of}"), *n, *arguments, *outputs)
        for y, found in zip(expected, outputs, strict=True):
            scale = np.max(np.abs(y), initial=0.0, where=np.isfinite(y))
            np.testing.assert_allclose(found, y, rtol=rtol, atol=rtol * scale, err_msg=of)

    ys = jax.tree.leaves(jax.jit(f)(*arrays))
    close(ys, *arrays, of="forward")
    if jvp:
        dots = tangents(arrays)
        y, y_dot = jax.jit(lambda x, dx: jax.jvp(lambda *x: jax.tree.leaves(f(*x)), x, dx))(arrays, tuple(dots))
        close([*y, *y_dot], *arrays, *dots, of="jvp")
    if vjp:
        bars = tangents(ys)
        x_bar = jax.jit(lambda x, dy: jax.vjp(lambda *x: jax.tree.leaves(f(*x)), *x)[1](dy))(arrays, bars)
        close(x_bar, *arrays, *bars, of="vjp")
    return library


@pytest.mark.slow
def test_a_net_its_derivatives_and_its_files(net, tmp_path):
    ps, st = net
    library = check(tmp_path, lambda x: NET(x, ps, st)[0], (samples(19, 4),))
    text, x, y = (tmp_path / "f.c").read_text(), samples(40, 4), np.zeros((40, 3), np.float32)
    call(library.f_forward, 0, x, y)
    assert not y.any()
    with ThreadPoolExecutor(4) as threads:  # there is no memory that calls share
        outs = [np.zeros((40, 3), np.float32) for _ in range(16)]
        list(threads.map(lambda out: call(library.f_forward, 40, x, out), outs))
    np.testing.assert_allclose(outs, [NET(x, ps, st)[0]] * 16, rtol=1e-5, atol=1e-6)
    c_source(tmp_path / "net.c", NET, ps, st, x, name="f")
    first = {file.name: file.read_bytes() for file in tmp_path.glob("net.*")}
    assert sorted(first) == ["net.c", "net.f90", "net.h"]
    c_source(tmp_path / "net.c", NET, ps, st, x[:1], name="f")
    assert first == {file.name: file.read_bytes() for file in tmp_path.glob("net.*")}
    assert '"count": ' in first["net.c"].decode() and not re.search(r"^static (?!const|inline|void)", text, re.M)
    assert "malloc" not in text and set(re.findall("#include <(.*)>", text)) == {"math.h", "stddef.h"}


@pytest.mark.slow
def test_parameters_as_an_input_in_double_precision(net, tmp_path):
    ps, st = net
    model = lux.StatefulLayer(NET, ps, st)
    c_source(tmp_path / "net.c", model, x=samples(1, 4), params="input", vjp=True, dtype=jnp.float64)
    library, x = compiled(tmp_path / "net.c"), samples(21, 4, dtype=np.float64)
    p, y_bar = np.asarray(ps.data, np.float64), samples(21, 3, dtype=np.float64)
    y, p_bar, x_bar = np.zeros((21, 3)), np.full_like(p, 7.0), np.zeros_like(x)
    call(library.net_forward, 21, p, x, y)
    call(library.net_vjp, 21, p, x, y_bar, p_bar, x_bar)

    def f(p, x):
        return NET(x, lux.ComponentVector(p, ps.astype("float64").layout), st)[0]

    expected, pull = jax.vjp(f, p, x)
    for found, wanted in zip((y, p_bar, x_bar), (expected, *pull(jnp.asarray(y_bar))), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.exhaustive
def test_operations(tmp_path):
    check(tmp_path, lambda x: [*elementwise(x), *moving(x)], (samples(18, 5),), rtol=3e-6)


def test_whole_numbers_and_booleans(tmp_path):
    both = bytes_of(18), samples(18, 5)
    check(tmp_path, lambda i, x: list(of_types(i, x)), both, jvp=False, vjp=False)
    check(tmp_path, lambda i: i // 3, both[:1], jvp=False, vjp=False)  # of bytes alone


@pytest.mark.exhaustive
def test_loops_and_branches(tmp_path):
    cell = lux.Recurrence(lux.LSTMCell(3, 4), return_sequence=True)
    _, _, recurrent = set_up(cell)

    def swapping(x):
        def step(carry, i):
            a, b = carry
            return (b, jnp.sin(a) + i), a * b

        (a, b), c = jax.lax.scan(step, (x, 2 * x), jnp.arange(4, dtype="float32"), reverse=True)
        return a, b, c.swapaxes(0, 1)

    check(tmp_path, lambda x: [recurrent(x), *swapping(x[:, 0])], (samples(18, 5, 3),))
    check(tmp_path, jax.vmap(loops_and_branches), (samples(1, 3),), vjp=False)
    check(tmp_path, loops_and_branches, (samples(1, 3)[0],), batch_axis=None, vjp=False)
    with pytest.raises(ValueError, match="no derivative in reverse mode"):
        c_source(tmp_path / "f.c", loops_and_branches, x=samples(1, 3)[0], batch_axis=None, vjp=True)


@pytest.mark.exhaustive
def test_solves(key, tmp_path):
    model = lux.BranchLayer(*solves())
    ps, st = lux.setup(key, model, dtype="float64")
    x, x_dot = samples(2, 3, dtype=np.float64), samples(2, 3, dtype=np.float64)[::-1].copy()
    c_source(tmp_path / "f.c", model, ps, lux.testmode(st), x)
    found = [np.zeros(shape) for shape in ((2, 4, 3), (2, 3), (2, 3))]
    call(compiled(tmp_path / "f.c").f_forward, 2, x, *found)
    jitted = jax.jit(lambda x: model(x, ps, lux.testmode(st))[0])
    for i in range(2):  # each sample as alone
        for c, y, tolerance in zip(found, jitted(x[i : i + 1]), (1e-13, 1e-10, 1e-6), strict=True):
            np.testing.assert_allclose(c[i], jnp.squeeze(y), rtol=tolerance, atol=tolerance)
    ode = (model[1], ps.layer_1, lux.testmode(st["layer_1"]), x)
    c_source(tmp_path / "g.c", *ode, jvp=True)
    library = compiled(tmp_path / "g.c")

    def forward(x):
        call(library.g_forward, 2, x, y := np.zeros_like(x))
        return y

    y, y_dot = np.zeros_like(x), np.zeros_like(x)
    call(library.g_jvp, 2, x, x_dot, y, y_dot)
    difference = (forward(x + 1e-4 * x_dot) - forward(x - 1e-4 * x_dot)) / 2e-4
    np.testing.assert_allclose(y_dot, difference, rtol=1e-5)  # the solver's tolerance is 1e-6


@pytest.mark.slow
def test_images_shared_inputs_other_axes_and_a_workspace(tmp_path):
    model = lux.Chain(
        lux.Conv(2, 4, (3, 3), activation=jax.nn.relu, groups=2),
        lux.BatchNorm(4),
        lux.MaxPool((2, 2)),
        lux.Conv(4, 3, (3, 2), stride=2),
    )
    _, _, of_images = set_up(model)
    check(tmp_path, of_images, (samples(17, 9, 8, 2),), jvp=False, vjp=False)
    x, t, w = samples(18, 3), np.float32(0.3), samples(3, 3)
    words = {"t0": x, "exp": x, "int": x, "i": x}  # are the names of something else in C
    c_source(tmp_path / "f.c", lambda x: x["t0"] + jnp.exp(x["exp"] * x["int"]) - x["i"], x=words, vjp=True)
    call(compiled(tmp_path / "f.c").f_forward, 18, x, x, x, x, y := np.zeros_like(x))
    np.testing.assert_allclose(y, np.exp(x * x), rtol=1e-6)
    shared = {"batch_axis": (0, None, None)}
    check(tmp_path, lambda x, t, w: jnp.tanh(t * x @ w), (x, np.asarray(t), w), **shared)
    check(tmp_path, lambda x, t, w: (jnp.tanh(t * x @ w), t * w), (x, np.asarray(t), w), **shared, vjp=False)
    check(tmp_path, lambda x: jnp.sum(x, 0), (samples(4, 3),), batch_axis=None)
    header = (tmp_path / "f.h").read_text()
    assert "n samples" not in header and "int n" not in header
    c_source(tmp_path / "f.c", lambda x: jnp.cumsum(x, 0), x=samples(5, 2), batch_axis=1)  # in C the samples are first
    y = np.zeros((20, 5), np.float32)
    call(compiled(tmp_path / "f.c").f_forward, 20, samples(20, 5), y)
    np.testing.assert_allclose(y, np.cumsum(samples(20, 5), 1), rtol=1e-6, atol=1e-6)
    about = read_metadata(tmp_path / "f.c")
    assert about["inputs"][0]["shape"] == about["outputs"][0]["shape"] == ["batch", 5]

    def large(x):
        outer = jnp.sin(x[:, :, None] * x[:, None])
        return jnp.einsum("bij,bkj->bik", outer, outer)[:, 0]

    c_source(tmp_path / "g.c", large, x=samples(1, 200), fortran=False)
    assert not (tmp_path / "g.f90").exists()
    (size,) = re.findall(r"#define G_FORWARD_WORK (\d+)", (tmp_path / "g.h").read_text())
    y, x = np.zeros((3, 200), np.float32), samples(3, 200)
    call(compiled(tmp_path / "g.c").g_forward, 3, x, y, np.zeros(int(size), np.uint8))
    np.testing.assert_allclose(y, large(x), rtol=1e-5, atol=1e-5)


def test_refusals(net, tmp_path):
    ps, st = net
    x, path = samples(2, 4), tmp_path / "net.c"
    for f, message in (
        (lambda x: x - jnp.mean(x, 0), "depends on the others of the batch"),
        (lambda x: jnp.cumsum(x, 0), "depends on the others of the batch, on their number, or on its place among them"),
        (lambda x: x - 1e-3 * jnp.mean(x, 0), "depends on the others of the batch"),
        (lambda x: jnp.mean(x[1:], 0), "depends on the others of the batch, on their number"),
        (lambda x: jnp.mean(x), "has no batch axis and depends on the samples"),
        (lambda x: jnp.sort(x), r"C source has no translation of 'sort'.*StableHLO"),
        (lambda x: (x.astype(jnp.bfloat16) * 2).astype(x.dtype), "computes with bfloat16: convert it.*StableHLO"),
    ):
        with pytest.raises(ValueError, match=message):
            c_source(path, f, x=x)
    with pytest.raises(ValueError, match=r"ends in \.c"):
        c_source(tmp_path / "net.cc", NET, ps, st, x)
    with pytest.raises(ValueError, match="no name that functions"):
        c_source(path, NET, ps, st, x, name="2nd")
    with pytest.raises(ValueError, match="float32 or float64"):
        c_source(path, NET, ps, st, x, dtype=jnp.float16)
    with pytest.raises(ValueError, match="Fortran takes two names of u, U, y for one"):
        c_source(path, lambda x: x["u"] + x["U"], x={"u": x, "U": x})
    with pytest.raises(ValueError, match=r"names in C and Fortran .*: rename λ by"):
        c_source(path, lambda x: x["λ"], x={"λ": x})
    with pytest.raises(TypeError, match="bool, which C source lacks"):
        c_source(path, lambda x: x > 0, x=x)
    assert not list(tmp_path.iterdir())


C_MAIN = """
#include <stdio.h>
#include "field.h"

/* Runge-Kutta's classical method for dx/dt = f(x). */
int main(void) {
    float x[6] = {1.0f, 0.5f, -0.5f, 0.0f, 0.25f, 1.0f}, k[4][6], z[6];
    const float h = 0.05f;
    for (int step = 0; step < 20; step++) {
        field_forward(2, x, k[0]);
        for (int s = 1; s < 4; s++) {
            for (int i = 0; i < 6; i++) z[i] = x[i] + (s < 3 ? 0.5f : 1.0f)*h*k[s - 1][i];
            field_forward(2, z, k[s]);
        }
        for (int i = 0; i < 6; i++) x[i] += h/6*(k[0][i] + 2*k[1][i] + 2*k[2][i] + k[3][i]);
    }
    for (int i = 0; i < 6; i++) printf("%.9g\\n", x[i]);
    return 0;
}
"""
FORTRAN_MAIN = """
program main
  use, intrinsic :: iso_c_binding
  use field
  implicit none
  real(c_float) :: x(3, 2), k(3, 2, 4), z(3, 2), h
  integer :: step
  x = reshape([1.0, 0.5, -0.5, 0.0, 0.25, 1.0], [3, 2])
  h = 0.05
  do step = 1, 20
    call field_forward(2, x, k(:, :, 1))
    z = x + 0.5*h*k(:, :, 1)
    call field_forward(2, z, k(:, :, 2))
    z = x + 0.5*h*k(:, :, 2)
    call field_forward(2, z, k(:, :, 3))
    z = x + h*k(:, :, 3)
    call field_forward(2, z, k(:, :, 4))
    x = x + h/6*(k(:, :, 1) + 2*k(:, :, 2) + 2*k(:, :, 3) + k(:, :, 4))
  end do
  print '(es16.8)', x
end program main
"""


@pytest.mark.exhaustive
def test_inside_integrators_in_c_cpp_and_fortran(tmp_path):
    model = lux.Chain(lux.Dense(3, 8, jnp.tanh), lux.Dense(8, 3))
    ps, st, f = set_up(model)
    c_source(tmp_path / "field.c", model, ps, st, samples(1, 3), jvp=True, vjp=True)

    def step(x, _):
        h, a = 0.05, f(x)
        b = f(x + h / 2 * a)
        c = f(x + h / 2 * b)
        return x + h / 6 * (a + 2 * b + 2 * c + f(x + h * c)), None

    start = jnp.array([[1.0, 0.5, -0.5], [0.0, 0.25, 1.0]], "float32")
    expected = jax.lax.scan(step, start, length=20)[0].ravel()
    (tmp_path / "main.c").write_text(C_MAIN)
    (tmp_path / "main.cpp").write_text(C_MAIN)
    (tmp_path / "main.f90").write_text(FORTRAN_MAIN)
    subprocess.run([CC, *STRICT, "-c", "field.c"], cwd=tmp_path, check=True)
    builds = [[CC, *STRICT, "main.c"], ["g++", "-Wall", "-Wextra", "-Werror", "main.cpp"]]
    builds += [["gfortran", "-std=f2003", "-Wall", "-Werror", "field.f90", "main.f90"]]
    for compiler, *flags in builds:
        if shutil.which(compiler):
            subprocess.run([compiler, *flags, "field.o", "-o", "main", "-lm"], cwd=tmp_path, check=True)
            out = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
            np.testing.assert_allclose(np.array(out.split(), float), expected, rtol=1e-5, atol=1e-6)
