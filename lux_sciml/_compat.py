"""What is read of the inside of other libraries, here and in no other file, each with what happens where it has moved.

================================================  ==================  ==================================================
what                                              versions            where it is missing
================================================  ==================  ==================================================
`jax._src.core.trace_ctx`, tracers' `_trace`      jax 0.10 to 0.12    parts of traced vectors are computed anew
`jax.extend.core.get_opaque_trace_state`          jax 0.10 to 0.12    leaked tracers are JAX's own error, later
`jax.make_user_context`                           jax 0.10 to 0.12    a change of context clears JAX's caches
`jax.experimental.xla_metadata`                   jax 0.10 to 0.12    vectors are cut by one `lax.split`
parameters of equations in a jaxpr                jax 0.10 to 0.12    what a traced call returns counts as updated
`jax.extend.core.Primitive`, `jax.interpreters`   jax 0.10 to 0.12    wrong modes of derivatives are JAX's own error
`equinox.internal.while_loop`                     equinox 0.13        `jax.lax.while_loop`; see the next line
diffrax's loop and the states that it carries     diffrax 0.7         `diffrax.RecursiveCheckpointAdjoint`
`diffrax.BacksolveAdjoint._diffeqsolve`           diffrax 0.7         failed backward solves raise
================================================  ==================  ==================================================

What is missing makes a result slower, or a refusal stricter, never wrong. That can be said only of what is missing, not
of what has changed its meaning: the loop of diffrax is therefore bounded above in pyproject.toml.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import diffrax
import jax
from jax import lax


def made_in_current_trace(x: Any) -> bool:
    """Whether `x` is a tracer of the innermost trace, so that what is computed from it may be kept beside it.

    Where this cannot be told, the answer is `False`: the caller then computes anew.
    """
    try:
        from jax._src.core import trace_ctx

        return isinstance(x, jax.core.Tracer) and x._trace is trace_ctx.trace
    except (ImportError, AttributeError):
        return False


def trace_state() -> Any:
    """A value that is equal in two places where the same transforms are tracing; `None` where this cannot be told."""
    try:
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state(convention="nnx")
    except (ImportError, TypeError):
        return None


class _ThreadValue(threading.local):
    value: Any = None


class JitKey:
    """A value of each thread on which all that `jax.jit` keeps depends.

    Where JAX has no such values, a change clears its caches.
    """

    def __init__(self):
        make = getattr(jax, "make_user_context", None)
        self._context, self._kept = make and make(None), _ThreadValue()

    @property
    def value(self) -> Any:
        return self._context.value if self._context else self._kept.value

    def set(self, value: Any) -> None:
        if self._context:
            self._context(value).__enter__()
        elif value != self._kept.value:
            jax.clear_caches()
            self._kept.value = value


def never_inlined() -> contextlib.AbstractContextManager[Any] | None:
    """A context in which XLA inlines no function that is called; `None` where there is none."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata

        return set_xla_metadata(inlineable="false")
    except (ImportError, TypeError):
        return None


def passed_through(closed: Any, output: int) -> int | None:
    """The index of the input that an output of a closed jaxpr is, unchanged; `None` if it is computed."""
    try:
        return _origin(closed.jaxpr, closed.jaxpr.outvars[output])
    except (AttributeError, TypeError):
        return None


_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # of jit, checkpoint, and custom derivative rules


def _origin(jaxpr: Any, var: Any) -> int | None:
    if hasattr(var, "val"):  # a constant
        return None
    if var in jaxpr.invars:
        return jaxpr.invars.index(var)
    for eqn in jaxpr.eqns:
        if var not in eqn.outvars:
            continue
        inner = next((eqn.params[name] for name in _INNER if name in eqn.params), None)
        if inner is None or eqn.primitive.name in ("scan", "while", "cond"):
            return None
        inner = getattr(inner, "jaxpr", inner)
        index = _origin(inner, inner.outvars[eqn.outvars.index(var)])
        return None if index is None else _origin(jaxpr, eqn.invars[index])
    return None


@functools.cache
def _reverse_tangent() -> Any:
    """The identity on tangents: it has a transpose, and refuses to be evaluated. `None` where there is none."""
    try:
        from jax.extend.core import Primitive
        from jax.interpreters import ad, batching, mlir

        tangent = Primitive("reverse_mode_only")

        def refuse(*_, sentence):
            raise TypeError(sentence)

        def jvp(xs, dxs, **sentence):
            return tangent.bind(*xs, **sentence), tangent.bind(*map(ad.instantiate_zeros, dxs), **sentence)

        tangent.multiple_results = True
        tangent.def_impl(refuse)
        tangent.def_abstract_eval(lambda *xs, sentence: list(xs))
        ad.primitive_jvps[tangent] = jvp
        ad.primitive_transposes[tangent] = lambda cts, *_, sentence: list(cts)
        batching.primitive_batchers[tangent] = lambda xs, axes, **sentence: (tangent.bind(*xs, **sentence), axes)
        mlir.register_lowering(tangent, refuse)
        return tangent
    except (ImportError, AttributeError):
        return None


def reverse_only(xs: list[Any], sentence: str) -> list[Any]:
    """The arrays `xs`; differentiating them in forward mode raises `TypeError` with the sentence.

    Inside `jax.jit` it is raised where the function is compiled.
    """
    primitive = _reverse_tangent()
    if primitive is None or not xs:
        return xs

    @jax.custom_jvp
    def identity(*xs):
        return xs

    def rule(xs, dxs):
        moving = [not isinstance(dx, jax.custom_derivatives.SymbolicZero) for dx in dxs]
        moved = iter(
            primitive.bind(*(dx for dx, is_moving in zip(dxs, moving, strict=True) if is_moving), sentence=sentence)
        )
        return xs, tuple(next(moved) if is_moving else dx for dx, is_moving in zip(dxs, moving, strict=True))

    identity.defjvp(rule, symbolic_zeros=True)
    return list(identity(*xs))


def while_loop(
    cond: Callable[..., Any], body: Callable[..., Any], init: Any, *, kind: str = "lax", **options: Any
) -> Any:
    """`lax.while_loop`, with Equinox's options: `max_steps`, and `buffers` that a batch does not copy at each step."""
    try:
        from equinox.internal import while_loop
    except ImportError:
        while_loop = None
    if while_loop is not None:
        return while_loop(cond, body, init, kind=kind, **options)
    if kind != "lax":
        raise ImportError(f"a while loop that is {kind} is Equinox's alone")
    most = options.get("max_steps")
    init = jax.tree.map(jax.numpy.asarray, init)

    def goes_on(carry):
        i, x = carry
        return cond(x) if most is None else cond(x) & (i < most)

    return lax.while_loop(goes_on, lambda carry: (carry[0] + 1, body(carry[1])), (0, init))[1]


_LOOP = {
    "solver", "stepsize_controller", "event", "saveat", "t0", "t1", "dt0", "max_steps", "terms", "args", "init_state",
    "inner_while_loop", "outer_while_loop", "progress_meter",
}  # fmt: skip
_STATE = {
    "y", "tprev", "tnext", "made_jump", "solver_state", "controller_state", "result", "num_steps",
    "num_accepted_steps", "save_state", "dense_ts", "dense_infos", "dense_save_index",
}  # fmt: skip
_SAVED = {"saveat_ts_index", "ts", "ys", "save_index"}


def solver_loop(adjoint: diffrax.AbstractAdjoint, state: Any) -> Callable[..., Any] | None:
    """The loop of `diffrax.diffeqsolve`, from the state `state`; `None` where they are not those of diffrax 0.7."""
    loop = getattr(adjoint, "_loop", None)
    if loop is None or set(inspect.signature(loop).parameters) != _LOOP:
        return None
    saved = jax.tree.leaves(getattr(state, "save_state", None), is_leaf=lambda x: hasattr(x, "saveat_ts_index"))
    known = [_STATE <= vars(state).keys(), *(_SAVED <= getattr(part, "__dict__", {}).keys() for part in saved)]
    return loop if all(known) and _has_loops() else None


def _has_loops() -> bool:
    try:
        from equinox.internal import while_loop

        return {"kind", "max_steps", "buffers", "checkpoints"} <= inspect.signature(while_loop).parameters.keys()
    except ImportError:
        return False


def backward_solver(adjoint: Any) -> bool:
    """Whether `diffrax.BacksolveAdjoint` solves backward by its property `_diffeqsolve`, which may be replaced."""
    return isinstance(getattr(diffrax.BacksolveAdjoint, "_diffeqsolve", None), property)
