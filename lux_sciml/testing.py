"""check_layer: one line that tells whether a layer keeps the contract; and two of its checks separately."""

import contextlib
import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from . import _names
from ._tree import floating, is_inexact
from .components import ComponentVector, Layout
from .core import Layer, Mode, parameter_length, setup, testmode, trainmode
from .core.mode import modes
from .core.static import fields_of, is_random_key

__dir__ = _names.public(__name__)

_STEP = 1e-5  # of the finite differences: eps^(1/3) in float64
_SAME = 1e-9  # two programs of one computation in float64, relative to the largest element


def check_layer(
    layer: Layer,
    x: Any,
    *,
    key: jax.Array | None = None,
    mode: Mode = Mode.TRAIN,
    batch_axis: int | None = 0,
    dtypes: Sequence[str] = ("float32", "float64"),
    derivatives: Sequence[str] = ("forward", "reverse", "second"),
    differentiable_input: bool = True,
    empty: bool = False,
    printed: bool = False,
    rtol: float = 1e-5,
) -> None:
    """Check that a layer keeps the contract. `AssertionError` says in one sentence what it breaks, where, by how much.

    `x` is an input: an array or a pytree of them. The checks, all with parameters and state from `setup(key, layer)`,
    in the given `mode`:

    * the layer is a value: rebuilt and pickled copies are equal to it, it prints, and its class shows its options;
    * with `printed`, what it prints makes an equal layer, unless it holds functions that cannot be imported;
    * `setup` gives the same elements for the same key, as many as `parameter_length` says;
    * the call is pure: two calls with the same arguments give the same bits and leave their arguments alone;
    * the state that comes out has the entries, shapes and dtypes of the one that went in;
    * in TEST mode nothing is remembered: with the state that came out of a call, the next one gives the same output
      and the same state again (statistics of the last call, as those of a solve, are renewed, but not read);
    * for each of `dtypes`, outputs have the precision of parameters and inputs, and are finite. In `"bfloat16"` and
      `"float16"` they are, in TEST mode, those of float32 up to rounding. For integers and `"bool"`, which the
      floating-point inputs are cast to, they are those of the same values in floating point;
    * a nested dict of parameters, in any order, does what the flat vector does;
    * `jax.jit` changes nothing, and does not trace again for an equal layer and the next state;
    * `jax.vmap` over the samples along `batch_axis` gives what the batch gives; with `batch_axis=None`, for layers that
      take no batch or whose samples depend on each other, it gives what a loop over two inputs gives;
    * with `empty`, a batch without samples gives an output without samples, and a gradient of zero;
    * the `derivatives` agree with central differences, for each parameter and, with `differentiable_input`, each
      floating-point input, along a random direction, to `rtol`: `"forward"` and `"reverse"` mode, and `"second"` order,
      forward over reverse. They are taken in float64, whether or not the caller has switched it on.

    Raises `ValueError` for other `derivatives`, and for `empty` without a `batch_axis`.

    >>> from lux_sciml import Dense
    >>> check_layer(Dense(2, 3, jnp.tanh), jnp.ones((4, 2)))
    """
    if not set(derivatives) <= {"forward", "reverse", "second"}:
        raise ValueError(f"derivatives are 'forward', 'reverse' and 'second', got {', '.join(derivatives)}")
    if empty and batch_axis is None:
        raise ValueError("empty=True checks a batch without samples, and needs batch_axis")
    traces: list[Layer] = []

    @jax.jit
    def run(layer, x, ps, st):
        traces.append(layer)
        return layer(x, ps, st)

    def arguments(dtype):
        ps, st = setup(jax.random.key(0) if key is None else key, layer, dtype)
        return _cast(x, dtype), ps, testmode(st) if mode is Mode.TEST else trainmode(st)

    _check_value(layer)
    if printed:
        _check_printed(layer)
    with jax.enable_x64(True):
        args = arguments("float64")
        _check_setup(layer, *args[1:], *arguments("float64")[1:])
        _check_pure(layer, *args)
        _check_jit(run, traces, layer, *args)
        for dtype in dtypes:
            if not jnp.issubdtype(dtype, jnp.inexact):
                _check_integers(run, layer, *args, dtype)
                continue
            _check_dtype(run, layer, *arguments(dtype), dtype)
            if jnp.finfo(dtype).bits < 32:
                _check_half(run, layer, *arguments(dtype), dtype)
        require_test_mode(layer, *args, run=run)
        _check_vmap(run, layer, *args, batch_axis)
        if empty and batch_axis is not None:
            _check_empty(layer, *args, batch_axis)
        if derivatives:
            _check_derivatives(layer, *args, derivatives, differentiable_input, rtol)


def _check_value(layer: Layer) -> None:
    with _attempt("repr"):
        repr(layer)
    hidden = _required(layer) - inspect.signature(type(layer)).parameters.keys()
    if hidden:
        raise AssertionError(f"inspect.signature of the class does not show the option {', '.join(hidden)}")
    copies = {"rebuilt from its fields": layer.replace()}
    # Lambdas and classes inside functions have no import path: a layer may hold them, and then does not pickle.
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
        copies["pickled"] = pickle.loads(pickle.dumps(layer))
    for what, copy in copies.items():
        if copy != layer or hash(copy) != hash(layer):
            names = [name for name, value in fields_of(layer).items() if fields_of(copy).get(name) != value]
            says = f"a copy of the layer, {what}, is not equal to it, so that jit compiles again for each"
            raise AssertionError(f"{says}; the field {', '.join(names)} does not compare by value")


def _required(layer: Layer) -> set[str]:
    """The names of the fields that the class takes."""
    fields: Mapping[str, Any] = {} if type(layer)._own_init else type(layer).__dataclass_fields__
    return {name for name, field in fields.items() if field.init and str(field.type).find("ClassVar") < 0}


def _check_printed(layer: Layer) -> None:
    text = repr(layer)
    scope = {name: module for name, module in sys.modules.items() if "." not in name}
    scope |= {"jnp": jnp, "np": np, "partial": functools.partial}
    root = sys.modules[__name__.partition(".")[0]]
    scope |= {name: getattr(root, name) for name in root.__all__}
    scope |= {kind.__name__: kind for kind in _kinds(layer)}
    try:
        again = eval(text, scope)
    except SyntaxError as error:
        if "<" in text or "@compact" in text:  # functions that cannot be imported
            return
        raise AssertionError(f"what the layer prints is no Python: {error}") from error
    except Exception as error:
        says = f"what the layer prints does not make it again: {type(error).__name__}: {error}"
        raise AssertionError(says.splitlines()[0]) from error
    if again != layer:
        raise AssertionError(f"what the layer prints makes another layer: {again!r}".splitlines()[0])


def _kinds(value: Any) -> Iterator[type]:
    """The classes of the layers in a value."""
    if isinstance(value, Layer):
        yield type(value)
        value = fields_of(value)
    if isinstance(value, tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _kinds(item)


def _check_setup(layer: Layer, ps: ComponentVector, st: Any, ps_again: ComponentVector, st_again: Any) -> None:
    now, again = {"ps": ps.tree(), "st": st}, {"ps": ps_again.tree(), "st": st_again}
    _require_same("two setups with the same key differ at", now, again)
    if parameter_length(layer) != ps.size:
        raise AssertionError(f"parameter_length says {parameter_length(layer)}, but setup makes {ps.size} parameters")


def _check_pure(layer: Layer, x: Any, ps: ComponentVector, st: Any) -> None:
    now = {"x": x, "ps": ps.tree(), "st": st}
    before = jax.tree.map(lambda leaf: leaf, now)  # new dicts, sorted by JAX
    first, second = (_named(layer(*now.values())) for _ in range(2))
    _require_same("not pure: the call changes its argument at", before, now)
    _require_same("not pure: two calls with the same arguments differ at", first, second)
    _require_kept(st, first["st"])
    y = {"y": first["y"]}
    _require_same("the flat vector and the nested dict of parameters differ at", y, {"y": layer(x, ps, st)[0]})
    with _attempt("a call with the dict of parameters in sorted order"):
        _require_same("the order of the dict of parameters matters at", y, {"y": layer(x, before["ps"], st)[0]})


def _check_jit(run: Callable, traces: list[Layer], layer: Layer, x: Any, ps: ComponentVector, st: Any) -> None:
    with _attempt("jax.jit"):
        y, st_next = run(layer, x, ps, st)
    _require_same("jax.jit changes the output at", {"y": layer(x, ps, st)[0]}, {"y": y}, _SAME)
    run(layer.replace(), x, ps, st_next)
    if len(traces) > 1:
        says = "a second call, with an equal layer and the state that came out of the first, traces again"
        raise AssertionError(f"{says}: weakly typed entries of the state do that, give them a dtype")


def _check_dtype(run: Callable, layer: Layer, x: Any, ps: ComponentVector, st: Any, dtype: str) -> None:
    with _attempt(f"a call in {dtype}"):
        y, st_next = run(layer, x, ps, st)
    for path, leaf in ((path, leaf) for path, leaf in _leaves({"y": y}) if _inexact(leaf)):
        if jnp.finfo(leaf.dtype).dtype != jnp.dtype(dtype):
            raise AssertionError(
                f"`{path}` is {leaf.dtype}, where parameters and inputs are {dtype}: arrays made in `forward` need the "
                "dtype of the input, jnp.ones(n, x.dtype)"
            )
        if not np.isfinite(np.asarray(leaf)).all():
            raise AssertionError(f"`{path}` is not finite in {dtype}")
    _require_kept(st, st_next)


def _check_half(run: Callable, layer: Layer, x: Any, ps: ComponentVector, st: Any, dtype: str) -> None:
    """In half precision a layer gives what it gives in float32 for the same values, up to rounding."""
    st, wide = testmode(st), functools.partial(_cast, dtype="float32")
    y, expected = (run(layer, *args)[0] for args in ((x, ps, st), (wide(x), wide(ps), wide(st))))
    rtol = 10 * float(jnp.finfo(dtype).eps)
    _require_same(f"in {dtype} the layer differs from float32 at", {"y": expected}, {"y": wide(y)}, rtol)


def _check_integers(run: Callable, layer: Layer, x: Any, ps: ComponentVector, st: Any, dtype: str) -> None:
    """Integers give what the same values in floating point give."""

    def whole(leaf: Any) -> Any:
        if not is_inexact(leaf) or jnp.iscomplexobj(leaf):
            return leaf
        return (leaf > 0 if dtype == "bool" else jnp.clip(jnp.abs(jnp.round(2 * leaf)), 0, 9)).astype(dtype)

    xs, st = jax.tree.map(whole, x), testmode(st)
    same = jax.tree.map(lambda new, old: floating(new) if is_inexact(old) else new, xs, x)
    with _attempt(f"a call with inputs in {dtype}"):
        y = run(layer, xs, ps, st)[0]
    says = f"inputs in {dtype} differ from the same values in floating point at"
    _require_same(says, {"y": run(layer, same, ps, st)[0]}, {"y": y}, _SAME)


def _check_empty(layer: Layer, x: Any, ps: ComponentVector, st: Any, axis: int) -> None:
    """A batch without samples gives an output without samples, and a gradient of zero."""
    none = jax.tree.map(lambda leaf: jax.lax.slice_in_dim(jnp.asarray(leaf), 0, 0, axis=axis), x)
    shapes = {path: leaf.shape for path, leaf in _leaves({"y": jax.eval_shape(layer.__call__, x, ps, st)[0]})}

    @jax.jit
    def score(ps):
        y, _ = layer(none, ps, st)
        return _score(y), y

    with _attempt("a batch without samples"):
        gradient, y = jax.grad(score, has_aux=True)(ps)
    for path, leaf in _leaves({"y": y}):
        expected = (*shapes[path][:axis], 0, *shapes[path][axis + 1 :])
        if leaf.shape != expected:
            raise AssertionError(f"without samples `{path}` has the shape {list(leaf.shape)}, not {list(expected)}")
    for path, leaf in _leaves({"ps": gradient.tree()}):
        if np.any(np.asarray(leaf) != 0):
            raise AssertionError(f"without samples the gradient by `{path}` is not zero")


def require_test_mode(layer: Layer, x: Any, ps: Any, st: Any, *, run: Callable[..., Any] | None = None) -> None:
    """Raise `AssertionError` unless nothing is remembered in TEST mode.

    With the state that came out of a call, the next call gives the same output and the same state again.

    * `layer`, `x`, `ps`, `st`: the layer and what it is called with, in any mode;
    * `run`: a compiled `run(layer, x, ps, st)`, if there is one.

    >>> import lux_sciml as lux
    >>> layer = lux.BatchNorm(3)
    >>> require_test_mode(layer, jnp.ones((4, 3)), *lux.setup(jax.random.key(0), layer))
    """
    run, st = run or jax.jit(lambda layer, x, ps, st: layer(x, ps, st)), testmode(st)
    if modes(st):
        first = _named(run(layer, x, ps, st))
        second = _named(run(layer, x, ps, first["st"]))
        _require_same("in TEST mode a second call differs from the first one at", first, second)


def _named(out: Iterable[Any]) -> dict[str, Any]:
    y, st = out
    return {"y": y, "st": st}


def _check_vmap(run: Callable, layer: Layer, x: Any, ps: ComponentVector, st: Any, axis: int | None) -> None:
    if axis is None:
        inputs = [x, jax.tree.map(lambda leaf: 0.9 * leaf if _inexact(leaf) else leaf, x)]
        outputs = [run(layer, x, ps, st)[0] for x in inputs]
        xs, expected = (jax.tree.map(lambda *leaves: np.stack(leaves), *trees) for trees in (inputs, outputs))
        says = "jax.vmap over two inputs differs from a loop at"
    else:
        xs, expected = _samples({"x": x}, axis)["x"], _samples({"y": run(layer, x, ps, st)[0]}, axis)["y"]
        says = "the batch differs from jax.vmap over its samples (do they depend on each other? batch_axis=None) at"
    with _attempt("jax.vmap"):
        ys, _ = jax.vmap(run, (None, 0, None, None))(layer, xs, ps, st)
    _require_same(says, {"y": expected}, {"y": ys}, _SAME)


def _samples(tree: dict[str, Any], axis: int) -> dict[str, Any]:
    """The samples along an axis, each with that axis of length one, stacked along a new first axis."""
    sizes = {path: np.shape(leaf)[axis] if np.ndim(leaf) > axis else 0 for path, leaf in _leaves(tree)}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"`{path}` {size}" for path, size in sizes.items())
        raise AssertionError(f"there is no batch along axis {axis} (sizes: {found}); pass batch_axis=None")
    return jax.tree.map(lambda leaf: np.stack(np.split(np.asarray(leaf), np.shape(leaf)[axis], axis)), tree)


def _check_derivatives(layer, x, ps, st, derivatives, differentiable_input, rtol) -> None:
    leaves, treedef = jax.tree.flatten(x)
    free = {path: i for i, (path, leaf) in enumerate(_leaves({"x": x})) if differentiable_input and _inexact(leaf)}

    def loss(z):
        ps, inputs = z
        now = dict(enumerate(leaves)) | dict(zip(free.values(), inputs, strict=True))
        return _score(layer(treedef.unflatten(now.values()), ps, st)[0])

    @jax.jit
    def evaluate(z, v):
        out: dict[str, Any] = {"value": loss(z)}
        if "forward" in derivatives:
            out["forward"] = jax.jvp(loss, (z,), (v,))[1]
        if "reverse" in derivatives:
            by_dict, by_x = jax.grad(loss)((z[0].tree(), z[1]))
            out["of_dict"] = {"ps": ps.layout.ravel(by_dict), "x": by_x}
        if "second" in derivatives:
            out["gradient"], out["second"] = jax.jvp(jax.grad(loss), (z,), (v,))
        elif "reverse" in derivatives:
            out["gradient"] = jax.grad(loss)(z)
        return out

    z = jax.tree.map(np.asarray, (ps, [leaves[i] for i in free.values()]))
    for path, v in _directions(z, ps.layout, list(free)):
        points = (jax.tree.map(lambda a, b, h=h: a + h * b, z, v) for h in (0, _STEP, -_STEP))
        with _attempt("differentiation (derivatives=... says which are checked)"):
            here, up, down = (jax.tree.map(np.asarray, evaluate(point, v)) for point in points)
        value, slope = here["value"], (up["value"] - down["value"]) / (2 * _STEP)
        if "forward" in derivatives:
            require_slope("forward-mode", here["forward"], slope, path, rtol=rtol, value=value)
        if "reverse" in derivatives:
            pairs = zip(jax.tree.leaves(here["gradient"]), jax.tree.leaves(v), strict=True)
            total = sum(np.sum(a * b).real for a, b in pairs)
            require_slope("reverse-mode", total, slope, path, rtol=rtol, value=value)
            flat = {"ps": here["gradient"][0].data, "x": here["gradient"][1]}
            says = "the gradients by the flat vector and by the nested dict differ at"
            _require_same(says, flat, here["of_dict"], _SAME)
        if "second" in derivatives:
            trees = (here["second"], up["gradient"], down["gradient"], here["gradient"])
            for second, a, b, gradient in zip(*map(jax.tree.leaves, trees), strict=True):
                difference = (a - b) / (2 * _STEP)
                require_slope("second-order", second, difference, path, rtol=rtol, value=gradient)


def _score(y: Any) -> jax.Array:
    """A number that depends on every output in its own way, and not linearly."""
    rng, total = np.random.default_rng(0), jnp.zeros((), float)
    for leaf in filter(_inexact, jax.tree.leaves(y)):
        for part in [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [jnp.asarray(leaf)]:
            part = part.astype(float)
            terms = part * rng.standard_normal(part.shape) + 0.5 * part**2
            total += jnp.sum(terms) / max(part.size, 1)
    return total


def _directions(z: Any, layout: Layout, inputs: list[str]) -> Iterator[tuple[str, Any]]:
    """For each parameter and each input, its path and a random direction in which only it changes."""
    rng, (flat, others) = np.random.default_rng(1), jax.tree.map(np.zeros_like, z)

    def random(like):
        real, imag = rng.standard_normal((2, *like.shape))
        return real + 1j * imag if np.iscomplexobj(like) else real

    for leaf in layout.leaves:
        where = np.isin(np.arange(layout.size), np.arange(leaf.offset, leaf.offset + leaf.size))
        yield ".".join(["ps", *map(str, leaf.path)]), (ComponentVector(where * random(flat.data), layout), others)
    for i, path in enumerate(inputs):
        yield path, (flat, [random(leaf) if i == j else leaf for j, leaf in enumerate(others)])


def require_slope(kind: str, got: Any, expected: Any, path: str, *, rtol: float = 1e-5, value: Any = 0.0) -> None:
    """Raise `AssertionError` unless a derivative agrees with finite differences to `rtol`.

    * `got`, `expected`: the derivative and the differences, arrays of one shape;
    * `kind`, `path`: for the sentence, "the reverse-mode derivative along `ps.weight` is ...";
    * `rtol`: relative to the largest element;
    * `value`: what was differenced: the larger it is, the larger is the rounding of its differences.

    >>> require_slope("forward-mode", jnp.cos(1.0), (jnp.sin(1.01) - jnp.sin(0.99)) / 0.02, "x", rtol=1e-3)
    """
    got, expected = np.ravel(got), np.ravel(expected)
    size = max(np.abs(x).max(initial=0) for x in (got, expected)) + 1e-3 * (1 + np.abs(value).max(initial=0))
    error = np.abs(got - expected)
    if not (np.isfinite(error).all() and error.max(initial=0) <= rtol * size):
        a, b = got[np.argmax(error)], expected[np.argmax(error)]
        raise AssertionError(f"the {kind} derivative along `{path}` is {a:.6g}, where finite differences give {b:.6g}")


@contextlib.contextmanager
def _attempt(what: str) -> Iterator[None]:
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def _require_same(says: str, a: dict[str, Any], b: dict[str, Any], rtol: float = 0.0) -> None:
    """Raise unless two trees are the same: bit for bit or, with `rtol`, relative to the largest element of an array."""
    mine, others = dict(_leaves(a)), dict(_leaves(b))
    for path in mine.keys() ^ others.keys():
        raise AssertionError(f"{says} `{path}`, which only one of them has")
    for path, x in mine.items():
        x, y = _elements(x), _elements(others[path])
        if x.shape != y.shape or x.dtype != y.dtype:
            raise AssertionError(f"{says} `{path}`: {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}")
        close = rtol and _inexact(x) and np.allclose(x, y, 0, rtol * np.abs(x).max(initial=1e-3), equal_nan=True)
        if not (close or x.tobytes() == y.tobytes()):
            error = np.abs(x - y).max() if _inexact(x) else np.sum(x != y)
            raise AssertionError(f"{says} `{path}` by {error:.3g}")


def _require_kept(st: Any, st_next: Any) -> None:
    """Raise unless the state that came out has the entries, shapes and dtypes of the one that went in."""
    before, after = dict(_leaves({"st": st})), dict(_leaves({"st": st_next}))
    for path in before.keys() ^ after.keys():
        raise AssertionError(f"the state {'gains' if path in after else 'loses'} `{path}` in a call")
    for path in before:
        was, now = (x if isinstance(x, Mode) else f"{x.dtype}{list(x.shape)}" for x in (before[path], after[path]))
        if was != now:
            raise AssertionError(f"the state's `{path}` goes in as {was} and comes out as {now}")


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves, Modes included, with paths such as `st.layer_0.mode`."""
    found = tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, Mode))
    return [(keystr(path, simple=True, separator="."), leaf) for path, leaf in found]


def _elements(leaf: Any) -> np.ndarray:
    if isinstance(leaf, Mode):
        return np.asarray(leaf is Mode.TRAIN)
    return np.asarray(jax.random.key_data(leaf) if is_random_key(leaf) else leaf)


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.result_type(type(leaf))), jnp.inexact)


def _cast(x: Any, dtype: str) -> Any:
    """Floating-point and complex arrays in the given precision; the rest as it is."""

    def cast(leaf):
        leaf = leaf if isinstance(leaf, ComponentVector) else jnp.asarray(leaf)
        to = np.result_type(dtype, np.complex64) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else dtype
        return leaf.astype(to) if _inexact(leaf) else leaf

    return jax.tree.map(cast, x, is_leaf=lambda node: isinstance(node, ComponentVector))
