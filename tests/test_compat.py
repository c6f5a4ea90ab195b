"""What is read of the inside of other libraries is read in one file, and may be missing."""

import functools
import importlib.util
import pathlib
import re
import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml import _compat
from lux_sciml.components import split
from lux_sciml.core.frozen import updated_entries
from lux_sciml.diffeq.adjoints.discrete import DiscreteAdjoint
from lux_sciml.diffeq.solvers.runge_kutta import unrolled

PACKAGE = pathlib.Path(lux.__file__).parent
PRIVATE = re.compile(
    r"jax\._src|jax\.extend|jax\.interpreters|xla_metadata|make_user_context|import equinox\.internal|eqxi\b"
    r"|eqx\.internal|equinox\.internal|(?:jax|jaxlib|equinox|diffrax|optimistix|lineax|optax|eqx|optx|lx)\._[a-z]"
    r"|jax\.experimental"
)


def without(monkeypatch, *modules):
    """`_compat` as it is imported where these modules do not exist."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
        parent, _, name = module.rpartition(".")
        if parent in sys.modules and sys.modules[parent] is not None:
            monkeypatch.delattr(sys.modules[parent], name, raising=False)
    spec = importlib.util.spec_from_file_location("compat_without", PACKAGE / "_compat.py")
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    return compat


def test_no_other_file_reads_the_inside_of_another_library():
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "_compat.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(line) and not line.strip().startswith(">>>")
    ]
    assert found == []


SCRIPT = """
import jax, jax.numpy as jnp, lux_sciml as lux
node = lux.NeuralODE(lux.Chain(*[lux.Dense(2, 2)] * 5), ts=[0.0, 1.0], output="final")
ps, st = lux.setup(jax.random.key(0), node)
print(jnp.linalg.norm(jax.grad(lambda ps: node(jnp.ones(2), ps, st)[0].sum())(ps).data))
"""
MISSING = """
import sys, jax, equinox, equinox.internal, diffrax, optimistix, optax
for module in ("jax.experimental.xla_metadata", "jax.extend.core", "jax.interpreters.ad", "equinox.internal"):
    sys.modules[module] = None
    parent, _, name = module.rpartition(".")
    if hasattr(sys.modules[parent], name):
        delattr(sys.modules[parent], name)
del jax.make_user_context
"""


@pytest.mark.exhaustive
def test_the_package_imports_and_solves_without_any_of_them():
    runs = [
        subprocess.run([sys.executable, "-c", s], capture_output=True, text=True) for s in (SCRIPT, MISSING + SCRIPT)
    ]
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    np.testing.assert_allclose(*(float(run.stdout) for run in runs), rtol=1e-5)


def test_traces_that_cannot_be_told_apart(monkeypatch):
    def outer(x):
        states.append((_compat.made_in_current_trace(x), _compat.trace_state()))
        return x

    states = []
    jax.jit(outer)(1.0)
    compat = without(monkeypatch, "jax.extend.core")
    assert states[0] == (True, states[0][1]) and states[0][1] != compat.trace_state() is None
    monkeypatch.setitem(sys.modules, "jax._src.core", None)
    jax.make_jaxpr(lambda x: states.append(compat.made_in_current_trace(x)) or x)(1.0)
    assert states[1] is False


@pytest.mark.parametrize("missing", [False, True])
def test_contexts_are_part_of_what_is_traced(monkeypatch, missing):
    if missing:
        monkeypatch.delattr(jax, "make_user_context")
    key, traced = _compat.JitKey(), []

    @jax.jit
    def f(x):
        traced.append(key.value)
        return x

    for value in (None, "a", "a", None):
        key.set(value)
        f(1.0)
    assert traced[:2] == [None, "a"]
    assert key.value is None and (traced[2:] == [None] if missing else traced[2:] == [])


def test_vectors_are_cut_without_metadata(monkeypatch):
    x, sizes = jnp.arange(20.0), (2,) * 10
    grad = jax.grad(lambda x: sum(i * part.sum() for i, part in enumerate(split.split(x, sizes))))
    with_metadata = grad(x)
    compat = without(monkeypatch, "jax.experimental.xla_metadata")
    assert _compat.never_inlined() is None and compat.never_inlined() is None
    jax.clear_caches()
    np.testing.assert_array_equal(grad(x), with_metadata)
    np.testing.assert_array_equal(jnp.concatenate(split.split(x, sizes)), x)
    assert "dynamic_slice" not in str(jax.make_jaxpr(grad)(x))


def test_an_entry_that_is_traced_counts_as_updated_where_jaxprs_cannot_be_read(monkeypatch):
    st = {"kept": jnp.zeros(2), "inside": jnp.ones(2), "changed": jnp.ones(2)}

    def call(st):
        return {**st, "inside": jax.jit(lambda x: x)(st["inside"]), "changed": st["changed"] + 1}

    assert updated_entries(call, st) == ["changed"]
    monkeypatch.setattr(_compat, "_INNER", ())
    assert updated_entries(call, st) == ["changed", "inside"]
    monkeypatch.setattr(_compat, "_origin", lambda jaxpr, var: jaxpr.no_such_field)
    assert updated_entries(call, st) == ["changed", "inside"]  # the other one is the same object


@pytest.mark.parametrize("missing", [False, True])
def test_loops_of_equinox_or_of_jax(monkeypatch, missing):
    if missing:
        monkeypatch.setitem(sys.modules, "equinox.internal", None)

    def double(n, **options):
        return _compat.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, 2 * c[1]), (0, 1.0), **options)[1]

    np.testing.assert_array_equal(jax.vmap(double)(jnp.arange(3)), [1, 2, 4])
    assert double(5, max_steps=3, buffers=lambda c: []) == 8
    point = optx.FixedPointIteration(1e-10, 1e-10)
    adjoint = lux.CheckedImplicitAdjoint()

    def root(a):
        return optx.fixed_point(lambda y, a: a * jnp.cos(y), point, jnp.array(0.5), a, adjoint=adjoint).value

    y = root(jnp.array(0.5))
    np.testing.assert_allclose(jax.grad(root)(jnp.array(0.5)), jnp.cos(y) / (1 + 0.5 * jnp.sin(y)), rtol=1e-6)
    if missing:
        with pytest.raises(ImportError, match="Equinox's alone"):
            double(3, kind="checkpointed")


def sine(x, y, mode, compat=_compat):
    x, y = compat.one_mode(mode, [x, y], "one mode only")
    return jnp.sin(x) * y


FORWARD = {
    "jacfwd": jax.jacfwd(sine),
    "jit": jax.jit(jax.jacfwd(sine), static_argnums=2),
    "jvp": lambda x, y, mode: jax.jvp(lambda x, y: sine(x, y, mode), (x, y), (x, y))[1],
}
X = jnp.array(0.5)


def test_a_mode_is_refused_to_nothing_but_the_other():
    np.testing.assert_allclose(jax.grad(sine)(X, X, "reverse"), jnp.cos(X) * X)
    both = jax.jit(jax.vmap(jax.grad(sine), (0, 0, None)), static_argnums=2)
    np.testing.assert_allclose(both(X[None], X[None], "reverse"), jnp.cos(X)[None] * X)
    np.testing.assert_allclose(jax.hessian(sine)(X, X, "reverse"), -jnp.sin(X) * X)  # forward over reverse mode
    np.testing.assert_allclose(jax.jacfwd(jax.grad(sine), 1)(X, X, "reverse"), jnp.cos(X))
    np.testing.assert_allclose(jax.jacrev(jax.grad(sine), 1)(X, X, "reverse"), jnp.cos(X))
    np.testing.assert_allclose(jax.jacfwd(jax.jacfwd(sine), 1)(X, X, "forward"), jnp.cos(X))
    for derivative in FORWARD.values():
        derivative(X, X, "forward")
        with pytest.raises(TypeError, match="one mode only"):
            derivative(X, X, "reverse")
    with pytest.raises(TypeError, match="one mode only"):
        jax.jit(jax.grad(sine), static_argnums=2)(X, X, "forward")


def test_no_mode_is_refused_where_there_are_no_such_primitives(monkeypatch):
    compat = without(monkeypatch, "jax.interpreters.ad")
    for mode in ("forward", "reverse"):
        f = functools.partial(sine, mode=mode, compat=compat)
        np.testing.assert_allclose(jax.grad(f)(X, X), jax.jacfwd(f)(X, X))


def gradient(adjoint):
    def loss(ps):
        field = diffrax.ODETerm(lambda t, y, p: jnp.tanh(p * y) - y)
        controller = diffrax.PIDController(1e-6, 1e-6)
        options = {"stepsize_controller": controller, "adjoint": adjoint, "max_steps": 64, "throw": False}
        solver = unrolled(diffrax.Tsit5())
        return jnp.sum(diffrax.diffeqsolve(field, solver, 0.0, 1.0, 0.1, jnp.ones(2), ps, **options).ys ** 2)

    return jax.grad(loss)(jnp.array([0.5, 2.0]))


@pytest.mark.exhaustive
def test_gradients_where_the_loop_of_diffrax_is_another(monkeypatch):
    usual = [gradient(adjoint) for adjoint in (diffrax.RecursiveCheckpointAdjoint(), DiscreteAdjoint())]
    np.testing.assert_allclose(*usual, rtol=1e-12)
    monkeypatch.setattr(_compat, "_has_loops", lambda: False)
    for adjoint in (DiscreteAdjoint(), lux.GaussAdjoint()):
        np.testing.assert_array_equal(gradient(adjoint), usual[0])


def test_an_adjoint_with_another_loop_finds_events_as_before():
    class Other(diffrax.DirectAdjoint):
        _loop = property(lambda self: print)

    adjoint = Other()
    assert _compat.with_root_find(adjoint, optx.root_find) is adjoint
    usual = diffrax.DirectAdjoint()
    assert type(_compat.with_root_find(usual, optx.root_find)) is not diffrax.DirectAdjoint


def test_the_loop_of_diffrax_is_known_by_its_arguments_and_states(monkeypatch):
    class Asking(diffrax.DirectAdjoint):
        def loop(self, *, init_state, **options):
            known.append(_compat.solver_loop(self, init_state) is not None)
            for name in ("_LOOP", "_STATE", "_SAVED"):
                with monkeypatch.context() as patch:
                    patch.setattr(_compat, name, getattr(_compat, name) | {"no_such_name"})
                    known.append(_compat.solver_loop(self, init_state) is not None)
            return super().loop(init_state=init_state, **options)

    known = []
    diffrax.diffeqsolve(diffrax.ODETerm(lambda t, y, p: -y), diffrax.Euler(), 0, 1, 1.0, jnp.ones(1), adjoint=Asking())
    assert known == [True, False, False, False]


def checked(x, *, most=2.0):
    """A function with a check, as libraries have them."""
    return eqx.error_if(x, x > most, "too large") + 1


def test_checks_are_left_out_of_a_copy_of_a_function():
    for function in (checked, eqx.filter_jit(checked)):
        assert _compat.unchecked(function)(jnp.array(3.0)) == 4.0
        with pytest.raises(RuntimeError, match="too large"):
            function(jnp.array(3.0))


def test_a_function_that_looks_up_other_names_stays_as_it_is():
    assert _compat.rebound(checked, other=1) is checked
    assert _compat.unchecked(re.escape) is re.escape
    assert _compat.rebound(max, eqx=1) is max


@pytest.mark.exhaustive
def test_what_the_fields_of_a_solve_check_is_checked_as_before():
    field = lux.Lambda(lambda y: eqx.error_if(-y, y > 2.0, "out of the domain"))
    node = lux.NeuralODE(field, ts=[0.0, 1.0], output="final")
    with pytest.raises(RuntimeError, match="out of the domain"):
        jax.block_until_ready(eqx.filter_jit(node)(jnp.array(3.0), {}, {})[0])
    assert jnp.isfinite(node(jnp.array(1.0), {}, {})[0])
