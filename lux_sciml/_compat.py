"""What is read of the inside of other libraries, here and in no other file, each with what happens where it has moved.

================================================  ==================  ==================================================
what                                              versions            where it is missing
================================================  ==================  ==================================================
`jax._src.core.trace_ctx`, tracers' `_trace`      jax 0.10 to 0.12    parts of traced vectors are computed anew
`jax.extend.core.get_opaque_trace_state`          jax 0.10 to 0.12    leaked tracers are JAX's own error, later
`jax.make_user_context`                           jax 0.10 to 0.12    a change of context clears JAX's caches
`jax.experimental.compilation_cache`              jax 0.10 to 0.12    to be set before the first program
`jax._src.compilation_cache`                      jax 0.10 to 0.12    what killed processes have written in part stays,
                                                                      with a warning of JAX when it is read
`jax._src.config.trace_context`                   jax 0.10 to 0.12    `minimize` traces the loss in every call
jaxprs, their equations, contexts and constants   jax 0.10 to 0.12    `minimize` compiles anew for other constants
`jax._src.dtypes.canonicalize_value`              jax 0.10 to 0.12    NumPy arrays that a loss reads clear JAX's caches
`jax.experimental.xla_metadata`                   jax 0.10 to 0.12    vectors are cut by one `lax.split`
equations of a jaxpr, run one by one              jax 0.10 to 0.12    Laplacians take one direction after the other
`jax._src.distributed.global_state`               jax 0.10 to 0.12    of processes that are gone JAX tells, later
`jax.experimental.multihost_utils`                jax 0.10 to 0.12    several processes cannot train together
`jax.experimental.jax2tf`                         jax 0.10 to 0.12    neither SavedModel nor TFLite can be written
the StableHLO version that `jax.export` writes     jax 0.10 to 0.12    TensorFlow may know fewer programs
parameters of equations in a jaxpr                jax 0.10 to 0.12    what a traced call returns counts as updated
`jax.interpreters.partial_eval.dce_jaxpr`         jax 0.10 to 0.12    a key that is only handed on counts as used; no
                                                                      word of parameters that a loss ignores
`jax.extend.core.Primitive`, `jax.interpreters`   jax 0.10 to 0.12    wrong modes of derivatives are JAX's own error
`equinox.internal.while_loop`                     equinox 0.13        `jax.lax.while_loop`; see the next line
diffrax's loop and the states that it carries     diffrax 0.7         `diffrax.RecursiveCheckpointAdjoint`
`diffrax.BacksolveAdjoint._diffeqsolve`           diffrax 0.7         failed backward solves raise
global names that functions of diffrax look up    diffrax 0.7         its checks stay, as host callbacks, those of
                                                                      optimistix at events too;
                                                                      its end of a solve is found by a hundred calls
`scipy_openblas_set_num_threads`, in the wheels   scipy, numpy 2.0    small factorizations wait for each other's threads
================================================  ==================  ==================================================

What is missing makes a result slower, or a refusal stricter, never wrong. That can be said only of what is missing, not
of what has changed its meaning: the loop of diffrax is therefore bounded above in pyproject.toml.
"""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import importlib
import inspect
import threading
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax import lax
from jax.core import Tracer

if TYPE_CHECKING:
    from jax.extend.core import (
        ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]  # jax 0.12 renames Jaxpr to it
        Jaxpr,
        Literal,
        Var,
    )
else:
    try:
        from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
    except ImportError:

        class _Moved:
            """In the place of JAX's classes: nothing is an instance of it, and it cannot be made with arguments."""

        ClosedJaxpr = Jaxpr = Literal = Var = _Moved

LoopKind: typing.TypeAlias = typing.Literal["lax", "checkpointed", "bounded"]


def made_in_current_trace(x: Any) -> bool:
    """Whether `x` is a tracer of the innermost trace, so that what is computed from it may be kept beside it.

    Where this cannot be told, the answer is `False`: the caller then computes anew.
    """
    try:
        from jax._src.core import trace_ctx

        return isinstance(x, Tracer) and x._trace is trace_ctx.trace
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

    @contextlib.contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Inside, this value; then the one from before."""
        before = self.value
        self.set(value)
        try:
            yield
        finally:
            self.set(before)


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


def called_program(eqn: Any) -> Any:
    """The program in an equation that calls one, as of jit or a custom derivative rule; a scan has one, too."""
    return next((eqn.params[name] for name in _INNER if name in eqn.params), None)


def _origin(jaxpr: Any, var: Any) -> int | None:
    if hasattr(var, "val"):  # a constant
        return None
    if var in jaxpr.invars:
        return jaxpr.invars.index(var)
    for eqn in jaxpr.eqns:
        if var not in eqn.outvars:
            continue
        inner = called_program(eqn)
        if inner is None or eqn.primitive.name in ("scan", "while", "cond"):
            return None
        inner = getattr(inner, "jaxpr", inner)
        index = _origin(inner, inner.outvars[eqn.outvars.index(var)])
        return None if index is None else _origin(jaxpr, eqn.invars[index])
    return None


@functools.cache
def _tangent(mode: str) -> Any:
    """The identity on tangents that refuses to be evaluated (of `"reverse"` mode only), or transposed (`"forward"`).

    `None` where JAX has no such primitives.
    """
    try:
        from jax.extend.core import Primitive
        from jax.interpreters import ad, batching, mlir

        def refuse(*_, sentence):
            raise TypeError(sentence)

        def identity(*xs, sentence):
            return list(xs)

        def jvp(xs, dxs, **sentence):
            return tangent.bind(*xs, **sentence), tangent.bind(*map(ad.instantiate_zeros, dxs), **sentence)

        backward = mode == "reverse"
        tangent = Primitive(f"{mode}_mode_only")
        tangent.multiple_results = True
        tangent.def_impl(refuse if backward else identity)
        tangent.def_abstract_eval(identity)
        ad.primitive_jvps[tangent] = jvp
        ad.primitive_transposes[tangent] = (lambda cts, *_, sentence: list(cts)) if backward else refuse
        batching.primitive_batchers[tangent] = lambda xs, axes, **sentence: (tangent.bind(*xs, **sentence), axes)
        mlir.register_lowering(tangent, refuse if backward else mlir.lower_fun(identity, multiple_results=True))
        return tangent
    except (ImportError, AttributeError):
        return None


def one_mode(mode: str, xs: list[Any], sentence: str) -> list[Any]:
    """The arrays `xs`; differentiating them in another mode, `"forward"` or `"reverse"`, raises `TypeError(sentence)`.

    Inside `jax.jit` forward mode is refused where the function is compiled.
    """
    primitive = _tangent(mode)
    if primitive is None or not xs:
        return xs

    @jax.custom_jvp
    def identity(*xs):
        return xs

    def rule(xs, dxs):
        moving = [not isinstance(dx, jax.custom_derivatives.SymbolicZero) for dx in dxs]
        tangents = [dx for dx, moves in zip(dxs, moving, strict=True) if moves]
        moved = iter(primitive.bind(*tangents, sentence=sentence))
        return xs, tuple(next(moved) if moves else dx for dx, moves in zip(dxs, moving, strict=True))

    identity.defjvp(rule, symbolic_zeros=True)
    return list(identity(*xs))


def while_loop(
    cond: Callable[..., Any], body: Callable[..., Any], init: Any, *, kind: LoopKind = "lax", **options: Any
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
_CLIP = {"tprev", "tnext", "t1", "t1_clip_floor", "keep_step"}
_SAVED = {"saveat_ts_index", "ts", "ys", "save_index"}


def solver_loop(adjoint: diffrax.AbstractAdjoint, state: Any) -> Callable[..., Any] | None:
    """The loop of `diffrax.diffeqsolve`, from the state `state`; `None` where they are not those of diffrax 0.7."""
    loop = getattr(adjoint, "_loop", None)
    if loop is None or set(inspect.signature(loop).parameters) != _LOOP:
        return None
    saved = jax.tree.leaves(getattr(state, "save_state", None), is_leaf=lambda x: hasattr(x, "saveat_ts_index"))
    known = [_STATE <= vars(state).keys(), *(_SAVED <= getattr(part, "__dict__", {}).keys() for part in saved)]
    return _with_short_clip(loop) if all(known) and _has_loops() else None


def _with_short_clip(loop: Callable[..., Any]) -> Callable[..., Any]:
    """diffrax's loop, which finds in one operation, not a hundred, the times so near to the end that a step goes there.

    They were an eighth of the program of a small solve.
    """
    scope = loop.__globals__
    clip = scope.get("_clip_to_end")
    if clip is None or inspect.signature(clip).parameters.keys() != _CLIP:
        return loop

    def clip_to_end(tprev, tnext, t1, t1_clip_floor, keep_step):
        return clip(tprev, tnext, t1, t1 - 100 * jnp.finfo(t1.dtype).eps * jnp.abs(t1), keep_step)

    return rebound(loop, _clip_to_end=clip_to_end, eqxi=_Instead(scope["eqxi"], prevbefore=_itself))


def _has_loops() -> bool:
    try:
        from equinox.internal import while_loop

        return {"kind", "max_steps", "buffers", "checkpoints"} <= inspect.signature(while_loop).parameters.keys()
    except ImportError:
        return False


def with_root_find(adjoint: diffrax.AbstractAdjoint, find: Callable[..., Any]) -> diffrax.AbstractAdjoint:
    """The adjoint, in whose solves the time of an event is found by `find`, called as `optimistix.root_find`.

    Where diffrax's loop is another, the adjoint as it is.
    """
    loop = getattr(adjoint, "_loop", None)
    names = getattr(loop, "__globals__", {})
    return adjoint if loop is None or "optx" not in names else as_class(adjoint, _finding(type(adjoint), find))


@functools.cache
def _finding(cls: type[Any], find: Callable[..., Any]) -> type[Any]:
    def loop(self):
        found = cls._loop.fget(self)
        return rebound(found, optx=_Instead(found.__globals__["optx"], root_find=find))

    return derived(cls, _loop=property(loop))


def derived(cls: type[Any], **names: Any) -> type[Any]:
    """A subclass of the same name, with these attributes."""
    return types.new_class(cls.__name__, (cls,), {}, lambda body: body.update(names, __module__=__name__))


def as_class(x: Any, cls: type[Any]) -> Any:
    """A frozen object as one of another class."""
    if type(x) is cls:
        return x
    copy = object.__new__(cls)
    for name, value in vars(x).items():
        object.__setattr__(copy, name, value)
    return copy


def solves_backward() -> bool:
    """Whether `diffrax.BacksolveAdjoint` solves backward by its property `_diffeqsolve`, which may then be another."""
    return isinstance(getattr(diffrax.BacksolveAdjoint, "_diffeqsolve", None), property)


def rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A copy of a Python function that finds these objects by its global names.

    The function as it is where it does not look them up, or is no Python function. A jitted one comes back plain.
    """
    plain = inspect.unwrap(function)
    if not names or not isinstance(plain, types.FunctionType) or not names.keys() <= plain.__globals__.keys():
        return function
    scope = {**plain.__globals__, **names}
    copy = types.FunctionType(plain.__code__, scope, plain.__name__, plain.__defaults__, plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


class _Instead:
    """A module, with other objects for some of its names."""

    def __init__(self, module: types.ModuleType, **names: Any):
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _itself(x: Any, *_: Any, **__: Any) -> Any:
    return x


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function of diffrax without its checks of values, which JAX compiles to callbacks to the host.

    With a callback a program can be neither exported nor kept in the compilation cache. The checks of functions that it
    calls, the user's among them, are as before. Where the function looks up other names, it is returned as it is.
    """
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    modules = {name: scope[name] for name in ("eqx", "eqxi") if name in scope}
    return rebound(function, **{name: _Instead(module, error_if=_itself) for name, module in modules.items()})


_diffeqsolve = unchecked(diffrax.diffeqsolve)
_compiled_diffeqsolve = eqx.filter_jit(_diffeqsolve)


def diffeqsolve(*args: Any, **options: Any) -> diffrax.Solution:
    """`diffrax.diffeqsolve` without its checks; compiled, or where a program is being traced a part of that one.

    A jitted function inside of a program is traced again for batches, and again for derivatives.
    """
    solve = _diffeqsolve if being_traced() else _compiled_diffeqsolve
    return solve(*args, **options)


def being_traced() -> bool:
    """Whether what is computed here becomes part of a program, and is not computed at once."""
    return isinstance(lax.full((), 0), Tracer)


class BrownianTree(diffrax.VirtualBrownianTree):
    """`diffrax.VirtualBrownianTree`, which trusts its times."""

    __init__ = unchecked(diffrax.VirtualBrownianTree.__init__)
    if hasattr(diffrax.VirtualBrownianTree, "_evaluate"):
        _evaluate = unchecked(diffrax.VirtualBrownianTree._evaluate)


class Bisection(optimistix.Bisection):
    """`optimistix.Bisection`, which trusts that there is a root between the ends, or at one of them."""

    init = unchecked(optimistix.Bisection.init)


class _OfVersion:
    """The module of StableHLO, where it is asked for the version to write."""

    def __init__(self, module: Any, latest: str):
        self._module, self._latest = module, latest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def get_version_from_compatibility_requirement(self, requirement: Any) -> str:
        asked = self._module.get_version_from_compatibility_requirement(requirement)
        return min(asked, self._latest, key=lambda version: tuple(map(int, version.split("."))))


@contextlib.contextmanager
def for_tensorflow() -> Iterator[None]:
    """Inside, `jax.export` and jax2tf write programs in a version of StableHLO that TensorFlow 2.21 reads."""
    try:
        exporting: Any = importlib.import_module("jax._src.export._export")
        module = exporting.hlo
        module.get_version_from_compatibility_requirement  # noqa: B018
    except (ImportError, AttributeError):
        yield
        return
    exporting.hlo = _OfVersion(module, "1.13.0")
    try:
        yield
    finally:
        exporting.hlo = module


def coordination() -> tuple[str, int, int, Callable[[str | None], str]] | None:
    """Of `jax.distributed`: the first process's address, this one, how many, and a way to share one text of the first.

    `None` where this is not known.
    """
    try:
        from jax._src.distributed import global_state

        client: Any = global_state.client
        address, index, count = global_state.coordinator_address, global_state.process_id, global_state.num_processes
        send, receive = client.key_value_set, client.blocking_key_value_get
    except (ImportError, AttributeError):
        return None

    def share(text: str | None) -> str:
        if text is not None:
            send("lux_sciml", text)
        return text or receive("lux_sciml", 60_000)

    return (str(address), int(index), int(count), share)


def of_all_processes(x: Any, joined: bool = False) -> np.ndarray:
    """The arrays of all processes along a new first axis; with `joined`, the parts of one array as a whole."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=joined))


def of_first_process(arrays: list[np.ndarray]) -> list[Any]:
    """The arrays of the first process, in all of them."""
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(arrays)


def to_tensorflow(function: Callable[..., Any], specs: Iterable[Any], **options: Any) -> Callable[..., Any]:
    """The function in TensorFlow, by `jax2tf.convert`, for arguments of these shapes, whose sizes may be symbolic."""
    from jax.experimental import jax2tf

    return jax2tf.convert(function, polymorphic_shapes=[str(spec.shape) for spec in specs], **options)


def reopen_compilation_cache() -> None:
    """Let JAX look at the settings of its compilation cache again, which it does at the first program only."""
    try:
        from jax.experimental.compilation_cache.compilation_cache import reset_cache
    except ImportError:
        return
    reset_cache()


def is_whole_program(file: bytes) -> bool:
    """Whether a file of JAX's compilation cache can be unpacked; one that was written in part cannot."""
    try:
        from jax._src.compilation_cache import decompress_executable
    except ImportError:
        return True
    try:
        decompress_executable(file)
    except Exception:  # of zlib or of zstd, whichever JAX has found
        return False
    return True


def trace_context() -> Hashable:
    """A value that is equal where JAX's switches and contexts, users' too, let a trace be what it was.

    Where this cannot be told, it is equal to nothing: the caller then traces anew.
    """
    try:
        from jax._src.config import trace_context

        return (trace_context(), random_switches())
    except ImportError:
        return object()


def random_switches() -> tuple[Any, ...]:
    """JAX's switches for random keys, on which what `jax.jit` keeps does not depend."""
    return tuple(getattr(jax.config, name, None) for name in ("jax_default_prng_impl", "jax_enable_custom_prng"))


def renew_constants(x: np.ndarray) -> None:
    """Bring what JAX has made of a NumPy array up to date with its elements.

    While a program holds the constant that an array was made into, JAX makes no other one of it, even where its
    elements or the precision in force have changed since, and the function is traced anew.
    """
    try:
        from jax._src.dtypes import canonicalize_value
    except ImportError:
        return jax.clear_caches()
    try:
        made = np.asarray(canonicalize_value(x))
    except (TypeError, ValueError):  # no numbers
        return
    if made.dtype != jax.dtypes.canonicalize_dtype(x.dtype):
        jax.clear_caches()
    elif not np.may_share_memory(made, x):
        np.copyto(made, x, casting="unsafe")


# --- jaxprs as values ---------------------------------------------------------------------------------------------


def parametrized(closed: ClosedJaxpr) -> tuple[ClosedJaxpr, list[jax.Array]]:
    """A program with the data that it closes over as its first arguments, and the data, as it is now.

    Functions that are jitted inside it keep what they close over to themselves; their data comes out too. Constants of
    the program remain: scalars that are not floating-point numbers, small NumPy arrays and integers of jitted functions
    (libraries' tables, which XLA folds), and what jitted functions inside a loop close over. Where jaxprs have changed
    all of it remains: with other data it is then another program, which compiles anew.
    """
    try:
        closed, _, data = _opened(_outside(closed), inside=False)
        return closed, [jnp.array(x, x.dtype) if isinstance(x, np.ndarray) else x for x in data]
    except (AttributeError, ImportError, KeyError, TypeError):
        return closed, []


def _outside(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program with the data of the jitted functions in it among its own constants."""
    from jax._src.named_sharding import UNSPECIFIED

    constvars, consts, eqns = list(closed.jaxpr.constvars), list(closed.consts), []
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "jit" and not any(hasattr(effect, "input_index") for effect in eqn.effects):
            inner, variables, data = _opened(_outside(eqn.params["jaxpr"]), inside=True)
            if data or inner.consts:
                new = [Var(var.aval) for var in variables]
                params: dict[str, Any] = {**eqn.params, "jaxpr": inner}
                for name, value in (("in_shardings", UNSPECIFIED), ("in_layouts", None), ("donated_invars", False)):
                    params[name] = (value,) * len(new) + params[name]
                eqn = eqn.replace(invars=[*new, *eqn.invars], params=params)
                constvars, consts = constvars + new, consts + data
        eqns.append(eqn)
    return ClosedJaxpr(closed.jaxpr.replace(constvars=constvars, eqns=eqns), consts)


def _opened(closed: ClosedJaxpr, inside: bool) -> tuple[ClosedJaxpr, list[Var], list[Any]]:
    """The program with its data as its first arguments, the variables of these, and the data."""
    jaxpr = closed.jaxpr
    pairs = list(zip(jaxpr.constvars, closed.consts, strict=True))
    data = [pair for pair in pairs if _is_data(pair[1], inside)]
    kept = [(var, x.copy() if isinstance(x, np.ndarray) else x) for var, x in pairs if not _is_data(x, inside)]
    variables = [var for var, _ in data]
    jaxpr = jaxpr.replace(constvars=[var for var, _ in kept], invars=[*variables, *jaxpr.invars])
    return ClosedJaxpr(jaxpr, [x for _, x in kept]), variables, [x for _, x in data]


def _is_data(x: Any, inside: bool) -> bool:
    if not isinstance(x, jax.Array | np.ndarray):
        return False
    if isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jnp.integer) and x.dtype != bool:
        return True
    return x.ndim > 0 and (not inside or x.size > 64)


def untouched(closed: ClosedJaxpr, index: int, sizes: list[int]) -> list[bool]:
    """For consecutive pieces of an input `(n,)` of a program, whether its first output does not depend on them.

    Pieces are told apart where the program splits or slices the input, inside of `jit` too; what goes elsewhere as a
    whole counts as used, and so does all where JAX's jaxprs are others.
    """
    used = np.zeros(sum(sizes), bool)
    try:
        from jax.interpreters.partial_eval import dce_jaxpr

        outputs = [i == 0 for i in range(len(closed.jaxpr.outvars))]
        jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
        (elements, *_) = _followed(jaxpr, {jaxpr.invars[index]: np.arange(used.size)}, used)
        used[elements if elements is not None else []] = True
    except (ImportError, AttributeError, TypeError, IndexError, KeyError, ValueError):
        used[:] = True
    return [not piece.any() for piece in np.split(used, np.cumsum(sizes)[:-1])]


def _followed(jaxpr: Any, holds: dict[Any, np.ndarray], used: np.ndarray) -> list[Any]:
    """Mark the elements that equations compute with, where variables hold some; what the outputs hold, or `None`."""
    for eqn in jaxpr.eqns:
        known: list[Any] = [None if hasattr(x, "val") else holds.get(x) for x in eqn.invars]
        if all(elements is None for elements in known):
            continue
        name, params = eqn.primitive.name, eqn.params
        out: list[Any] = []
        inner = called_program(eqn)
        if name == "split" and known[0].ndim == len(eqn.invars[0].aval.shape):
            out = np.split(known[0], np.cumsum(params["sizes"])[:-1])
        elif name == "slice" and known[0].ndim == len(eqn.invars[0].aval.shape):
            (start,), (stop,) = params["start_indices"], params["limit_indices"]
            out = [known[0][start : stop : (params["strides"] or (1,))[0]]]
        elif name in ("convert_element_type", "copy", "optimization_barrier") and len(eqn.outvars) == 1:
            out = known
        elif inner is not None and name not in ("scan", "while", "cond"):
            inner = getattr(inner, "jaxpr", inner)
            inside = zip(inner.invars[len(inner.invars) - len(known) :], known, strict=True)
            out = _followed(inner, {var: elements for var, elements in inside if elements is not None}, used)
        else:
            for elements in known:
                used[elements if elements is not None else []] = True
        for var, elements in zip(eqn.outvars, out, strict=False):
            if elements is not None:
                holds[var] = elements
    return [None if hasattr(x, "val") else holds.get(x) for x in jaxpr.outvars]


def has_convolutions(closed: Any) -> bool:
    """Whether a program has convolutions, for which XLA takes 50 times as long inside of loops on the CPU."""
    return any(eqn.primitive.name == "conv_general_dilated" for eqn in equations(closed))


def program_key(closed: ClosedJaxpr) -> Hashable:
    """A value that two programs share only where they compute the same. What is unknown in it is equal to itself only.

    Constants count by content, which is held as it is now.
    """
    try:
        return _jaxpr_key(closed)
    except (AttributeError, KeyError, TypeError):
        return object()


def run_jaxpr(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """The outputs of a closed jaxpr."""
    try:
        from jax.extend.core import jaxpr_as_fun
    except ImportError:
        from jax._src.core import jaxpr_as_fun
    return jaxpr_as_fun(closed)(*arguments)


@functools.cache
def runs_equations() -> bool:
    """Whether the equations of a jaxpr can be run one by one."""
    try:
        (eqn,) = jax.make_jaxpr(jnp.sin)(1.0).eqns
        run_equation(eqn, [1.0])
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def run_equation(eqn: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of one equation of a jaxpr."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def inner_program(eqn: Any) -> "ClosedJaxpr | None":
    """What an equation runs as it is: the program of a jitted function."""
    return eqn.params["jaxpr"] if eqn.primitive.name in ("jit", "pjit") else None


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many of the inputs of a `scan` are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # jax 0.12
    return len(constants), len(carry)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a Jaxpr or ClosedJaxpr, those of the programs inside of it too."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, Jaxpr | ClosedJaxpr):
                    yield from equations(inner)


def used_inputs(closed: ClosedJaxpr) -> list[bool]:
    """Of each input of a program, whether its outputs depend on it."""
    jaxpr = closed.jaxpr
    try:
        from jax.interpreters.partial_eval import dce_jaxpr

        return list(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1])
    except (ImportError, TypeError):
        read = {id(var) for eqn in needed(jaxpr) for var in eqn.invars} | set(map(id, jaxpr.outvars))
        return [id(var) in read for var in jaxpr.invars]


def without_unused(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program without what its outputs do not depend on, in its loops too."""
    try:
        from jax.interpreters.partial_eval import dce_jaxpr

        jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
        return ClosedJaxpr(jaxpr, closed.consts)
    except (ImportError, TypeError):
        return closed


def _jaxpr_key(jaxpr: Any) -> Hashable:
    """Of a Jaxpr or ClosedJaxpr: the equations that something needs, with the variables by number."""
    consts = getattr(jaxpr, "consts", [])
    for i, x in enumerate(consts):
        if isinstance(x, np.ndarray):
            consts[i] = x.copy()  # it may be the user's, who goes on to change it
    number: dict[Any, int] = {}

    def bind(var):
        number[var] = len(number)
        return var.aval

    def atom(x):
        return (_value_key(x.val), x.aval) if isinstance(x, Literal) else number[x]

    inputs = tuple(map(bind, [*jaxpr.constvars, *jaxpr.invars]))
    eqns = tuple(
        (
            eqn.primitive,
            eqn.ctx,
            tuple(map(atom, eqn.invars)),
            tuple((name, _value_key(x)) for name, x in sorted(eqn.params.items()) if name not in _RULES),
            tuple(map(bind, eqn.outvars)),
        )
        for eqn in needed(jaxpr)
    )
    return (len(consts), tuple(map(_value_key, consts)), inputs, eqns, tuple(map(atom, jaxpr.outvars)))


def needed(jaxpr: Any) -> list[Any]:
    """The equations without those that nothing depends on: what a library computes once and keeps appears only once."""
    wanted, needed = set(map(id, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(var) in wanted for var in eqn.outvars):
            wanted.update(map(id, eqn.invars))
            needed.append(eqn)
    return needed[::-1]


_RULES = {
    "jvp_jaxpr_fun",
    "fwd_jaxpr_thunk",
    "bwd",
    "out_trees",
    "rule",
}  # of custom derivatives and batches, which a program has behind it


def _value_key(x: Any) -> Hashable:
    kind = type(x)
    if x is None or kind in (bool, int, str, bytes) or isinstance(x, enum.Enum | np.dtype | type):
        return (kind, x)
    if isinstance(x, Jaxpr | ClosedJaxpr):
        return (kind, _jaxpr_key(x))
    if isinstance(x, tuple | list):
        return (kind, tuple(map(_value_key, x)))
    if isinstance(x, dict):
        return (kind, tuple((key, _value_key(item)) for key, item in x.items()))
    if isinstance(x, Tracer):
        return (kind, x.aval)  # left in a jaxpr that nothing evaluates, or the program would not compile
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return (kind, x.dtype, _value_key(jax.random.key_data(x)))
    if isinstance(x, float | complex | np.ndarray | np.generic | jax.Array):
        array = np.asarray(x)
        content = array.tobytes() if array.size <= 64 else hashlib.sha256(array.tobytes()).digest()
        return (kind, array.dtype, array.shape, content)
    if isinstance(x, types.FunctionType):  # a callback, which reads its cells when it is called; the program holds it
        cells = dict(zip(x.__code__.co_freevars, x.__closure__ or (), strict=True))
        if x.__globals__.get("__name__", "").partition(".")[0] in ("jax", "equinox"):  # made anew in every trace
            cells.pop("stack", None)  # where that was
            held = tuple(_value_key(cell.cell_contents) for cell in cells.values())
        else:
            held = tuple(map(id, cells.values()))
        return (kind, x.__code__, id(x.__globals__), held, id(x.__defaults__), id(x.__kwdefaults__))
    if isinstance(x, functools.partial):
        return (kind, _value_key((x.func, x.args, x.keywords)))
    if dataclasses.is_dataclass(x):
        return (kind, tuple(_value_key(getattr(x, f.name)) for f in dataclasses.fields(x)))
    if (
        kind.__module__.startswith("equinox.internal") and kind.__name__ == "Flatten"
    ):  # how a primitive's output unpacks
        return (kind, _value_key(x.get() if x.called() else None))
    try:
        hash(x)
    except TypeError:
        return object()
    return (kind, x)


# --- threads of the linear algebra --------------------------------------------------------------------------------


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread, in all of the process, for SciPy's OpenBLAS, whose factorizations JAX calls on CPUs, and NumPy's.

    Small matrices take much longer with several, where other threads or programs use the processors: they wait for each
    other. Where there is another BLAS, nothing changes.
    """
    before = [(set_number, number()) for number, set_number in openblas_threads()]
    for set_number, _ in before:
        set_number(1)
    try:
        yield
    finally:
        for set_number, number in before:
            set_number(number)


@functools.cache
def openblas_threads() -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    """What tells and sets the number of threads, for each of the libraries in the wheels of SciPy and NumPy."""
    import ctypes
    import pathlib

    import scipy.linalg  # which loads its own

    found = []
    for package, suffix in ((scipy, ""), (np, "64_")):
        home = pathlib.Path(str(package.__file__)).parent
        folders = [home.parent / f"{home.name}.libs", home / ".dylibs", home / ".libs"]
        for path in (path for folder in folders if folder.is_dir() for path in folder.glob("*openblas*")):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(str(path))
                pair = [getattr(library, f"scipy_openblas_{do}_num_threads{suffix}") for do in ("get", "set")]
                found.append((pair[0], pair[1]))
    return found
