"""Compiled programs, found by what they compute: what a loss reads is read anew, and only compiling is saved."""

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax

from .. import derivatives
from .._compat import ClosedJaxpr, JitKey, parametrized, program_key, random_switches, run_jaxpr, trace_context
from ..core.frozen import updated_entries
from ..core.reads import Reads, reads, together
from .problem import Inputs

KEPT = 64  # traces that are kept, each with the arrays that it closes over
_read_inside = JitKey()


class Programs:
    """Programs of functions `function(problem, *static, *arguments)`, with the loss as it is when this is made.

    The problem is a `Problem`, a `ResidualProblem` or a `NamedFunction`.

    `programs(function, *arguments)` is the function of its arguments, compiled for such shapes. Nothing that has
    changed since an earlier call is missed:

    * where all that the loss and the static part can read is known and as it was, what was traced then is taken;
    * otherwise the loss is traced anew, once for all functions, and so are the functions that JAX may have traced
      before, where they read something else now. Arrays that it closes over are arguments of the programs, so that
      those that differ in them alone, or not at all, are found again;
    * other programs compile.

    Under `jax.disable_jit` functions run as they are. All is traced, or run, in the `mode` of derivatives.
    """

    def __init__(
        self,
        problem: Any,
        params: Any,
        inputs: Any,
        *static: Any,
        mode: str | None = None,
    ):
        self._mode = mode
        self._eager = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
        self._found = reads(problem.function, *problem.facts())
        if not self._eager:
            trace = self.once("loss", lambda: problem.traced(_traced, params, inputs), params, inputs)
            problem = dataclasses.replace(problem, trace=trace)
        self._static = (problem, *static)
        self._found = together(self._found, reads(None, *static))

    def __call__(self, function: Callable, *arguments: Any) -> Callable:
        whole = functools.partial(function, *self._static)
        if self._eager:
            return self._in_mode(whole)
        return self.once(function, lambda: _compiled(whole, *arguments), *arguments)

    def _in_mode(self, function: Callable) -> Callable:
        def inside(*arguments):
            with contextlib.nullcontext() if self._mode is None else derivatives.mode(self._mode):
                return function(*arguments)

        return inside

    @property
    def problem(self) -> Any:
        """The problem, as it was traced."""
        return self._static[0]

    def updates(self, params: Any, inputs: Inputs) -> list[str]:
        """The entries of the state that the loss changes."""
        find = functools.partial(
            updated_entries, lambda state: self.problem(params, inputs._replace(state=state)).state
        )
        return self.once("updates", lambda: find(inputs.state), params, inputs)

    def once(self, what: Hashable, make: Callable[[], Any], *arguments: Any) -> Any:
        """`make()`, which depends on the loss and the shapes of the arguments, once for what is known and unchanged."""
        leaves, treedef = jax.tree.flatten(arguments)
        found = together(self._found, reads(None, treedef))
        key = (what, self._mode, found, tuple(map(jax.typeof, leaves)), trace_context())
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
        with inside(context_of(found)):
            made = self._in_mode(make)()
        if found.known:
            with _lock:
                _kept[key] = made
                while len(_kept) > KEPT:
                    _kept.popitem(last=False)
        return made


_lock = threading.Lock()
_kept: "OrderedDict[Hashable, Any]" = OrderedDict()


def context_of(found: Reads) -> object | None:
    """One value for what functions that JAX may have traced before read; `None` where there are none."""
    return _context(found.inner, random_switches()) if found.known else object()


def inside(context: object | None) -> contextlib.AbstractContextManager[None]:
    """Inside, such functions are traced anew where they read something else."""
    return _read_inside.holding(context)


@functools.lru_cache(KEPT)
def _context(inner: frozenset[Hashable], switches: tuple[Any, ...]) -> object | None:
    return object() if inner else None


def _traced(function: Callable, *arguments: Any) -> tuple[Callable, ClosedJaxpr, list[jax.Array], Any]:
    """The function traced, as a function of arguments of the same structure.

    With its program, the data that this takes first, and the structure of the output.
    """
    leaves, treedef = jax.tree.flatten(arguments)
    outer = None

    def flat(*leaves):
        nonlocal outer
        out, outer = jax.tree.flatten(function(*jax.tree.unflatten(treedef, leaves)))
        return out

    closed, data = parametrized(jax.make_jaxpr(flat)(*leaves))

    dtypes = [jax.typeof(x).dtype for x in leaves]

    def again(*arguments):  # which line searches call with others
        leaves = [jax.lax.convert_element_type(x, t) for x, t in zip(jax.tree.leaves(arguments), dtypes, strict=True)]
        return jax.tree.unflatten(outer, run_jaxpr(closed, *data, *leaves))

    return again, closed, data, outer


def _compiled(function: Callable, *arguments: Any) -> Callable:
    """The function traced, as a call of its compiled program."""
    _, closed, data, outer = _traced(function, *arguments)
    key = program_key(closed)
    with _lock:
        program = _programs.setdefault(key, _Program(closed))

    def call(*arguments):
        return jax.tree.unflatten(outer, _run(program, data, jax.tree.leaves(arguments)))

    return call


class _Program:
    """A program without the data that it closes over. Those that compute the same are one object."""

    def __init__(self, closed: ClosedJaxpr):
        self.closed = closed


_programs: "weakref.WeakValueDictionary[Hashable, _Program]" = weakref.WeakValueDictionary()


@functools.partial(jax.jit, static_argnums=0)
def _run(program: _Program, data: list[Any], leaves: list[Any]) -> list[Any]:
    return run_jaxpr(program.closed, *data, *leaves)
