"""All equations as a family: each takes every option as a plain solve says, or refuses it by name.

All fields here are `-rate y + t + u`, elementwise, with the terms that the options bring, and all steps are fixed, so
that a loop in NumPy has the same numbers. The options go together in pairs: each two values of two options meet in a
case of each equation.
"""

import functools
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RATE, STEP = 0.7, 0.25
TIMES = np.array([[0.0, 0.5, 1.0], [0.25, 0.5, 1.5]])  # those of the first sample, or of all; those of the second
FIXED = {"solver": diffrax.Heun(), "stepsize_controller": diffrax.ConstantStepSize(), "dt0": STEP, "max_steps": 8}


class Still(lux.Layer):
    """Zeros like the state, in all forms of input; with `noises` for the diffusion of general noise."""

    takes_time: bool = False
    takes_control: bool = False
    noises: bool = False

    def state(self, x):
        t, x = x if self.takes_time else (0.0, x)
        y, u = x if self.takes_control else (x, 0.0)
        return y, t + u

    def forward(self, x, ps, st):
        y, _ = self.state(x)
        return jax.tree.map(lambda y: jnp.zeros((*y.shape, 2) if self.noises else y.shape, y.dtype), y), st


class Decay(Still):
    """`-rate y + t + u`; with `draws` it renews a random key in each call."""

    draws: bool = False
    first: int | None = None  # the features of the state that it looks at

    def init_params(self, key):
        return {"rate": jnp.full((), RATE)}

    def init_state(self, key):
        return {"draw": key} if self.draws else {}

    def renewed(self, st):
        return {"draw": jax.random.split(st["draw"])[0]} if self.draws else st

    def forward(self, x, ps, st):
        y, rest = self.state(x)
        y = y if self.first is None else jnp.asarray(y)[..., : self.first]
        return jax.tree.map(lambda y: -ps["rate"] * y + rest, y), self.renewed(st)


class Twice(Still):
    """The constraint `z = 2 u` of the two features."""

    def forward(self, x, ps, st):
        y = jnp.asarray(self.state(x)[0])
        return y[..., 1:] - 2 * y[..., :1], st


class DecayAndTwice(Decay):
    def forward(self, x, ps, st):
        y = jnp.asarray(self.state(x)[0])
        dy = -ps["rate"] * y[..., :1] + self.state(x)[1]
        return jnp.concatenate([dy, y[..., 1:] - 2 * y[..., :1]], -1), self.renewed(st)


class AlongTime(Decay):
    """The model of a controlled equation: the decay along time, the first channel, and nothing along the data."""

    def forward(self, x, ps, st):
        y, st = super().forward(x, ps, st)
        return jnp.stack([y, jnp.zeros_like(y)], -1), st


class Well(Decay):
    """The potential whose force is the decay."""

    def forward(self, x, ps, st):
        y, rest = self.state(x)
        return ps["rate"] * jnp.sum(y**2, -1) / 2 - rest * jnp.sum(y, -1), self.renewed(st)


class Kinetic(Still):
    def forward(self, x, ps, st):
        return jnp.sum(self.state(x)[0] ** 2, -1) / 2, st


class Adding(lux.nn.recurrent_cells.RecurrentCell):
    """The carry plus the values that were observed."""

    def initial_carry(self, ps, batch_shape, dtype):
        return jnp.ones((*batch_shape, 1), dtype)

    def forward(self, x, ps, st):
        x, h = x
        return (h + x[..., :1], h + x[..., :1]), st


class Own(lux.Wrapper, lux.Equation):
    """An equation of one's own."""

    model: lux.Layer
    ts: Any = None

    def terms(self, fields):
        return diffrax.ODETerm(lambda t, y, ps: fields["model"](t, y, ps))


# --- the loops in NumPy ---------------------------------------------------------------------------------------------


def steps_of(ts):
    """The starts and sizes of the fixed steps between times, and after which of them a time is reached."""
    count = round(abs(ts[-1] - ts[0]) / STEP)
    return ts[0] + np.sign(ts[-1] - ts[0]) * STEP * np.arange(count), np.round(np.abs(ts - ts[0]) / STEP).astype(int)


def heun(f, y, ts):
    """The values at the times, by the trapezoidal rule that diffrax calls Heun's."""
    starts, saved = steps_of(ts)
    h, ys = np.sign(ts[-1] - ts[0]) * STEP, [y]
    for t in starts:
        k = f(t, y)
        y = y + h * (k + f(t + h, y + h * k)) / 2
        ys.append(y)
    return np.stack([ys[i] for i in saved])


def decay(f, y, ts):
    return heun(lambda t, y: -RATE * y + f(t), y, ts)


def hybrid(f, y, ts):
    """The decay, doubled by an event at 0.6, and one more by a jump at 0.75, with steps anew from both."""
    changes, t, ys = {0.6: lambda y: 2 * y, 0.75: lambda y: y + 1}, ts[0], [y]
    for stop in sorted({*ts[1:], *changes}):  # by equal steps, except to the event, in the last of which it is
        count = np.ceil((stop - t) / STEP - 1e-9)
        equal = STEP if stop == 0.6 else (stop - t) / count
        while stop - t > 1e-12:
            h = min(equal, stop - t)
            k = -RATE * y + f(t)
            y, t = y + h * (k - RATE * (y + h * k) + f(t + h)) / 2, t + h
        y = changes.get(stop, np.array)(y)
        ys += [y] if stop in ts else []
    return np.stack(ys)


def augmented(f, y, ts):
    return decay(f, np.append(y, 0.0), ts)


def oscillation(f, pair, ts):
    """`(x, v)` side by side."""
    ys = heun(lambda t, y: np.stack([y[1], -RATE * y[0] + f(t)]), np.stack(pair), ts)
    return ys[:, 0], ys[:, 1]


def symplectic(f, pair, ts):
    """As `diffrax.SemiImplicitEuler`: first q, then p."""
    starts, saved = steps_of(ts)
    (q, p), ys = pair, [pair]
    for t in starts:
        q = q + STEP * p
        p = p + STEP * (-RATE * q + f(t))
        ys.append((q, p))
    return tuple(np.stack([ys[i][part] for i in saved]) for part in (0, 1))


def constrained(f, y, ts):
    u = decay(f, y[:1], ts)
    return np.concatenate([u, 2 * u], -1)


def observed(f, x, ts):
    """A cell that adds the data, `x` at each time, to the hidden state, which starts from 1 and decays between."""
    hs = [1 + x]
    for i in range(len(ts) - 1):
        hs.append(decay(f, hs[-1], ts[i : i + 2])[-1] + x)
    return np.stack(hs)


def density(f, x, ts):
    """The log-density of `exp(-rate) z` with normal `z`, and `z`, by steps backward; the model sees the time."""
    z = heun(lambda t, x: -RATE * x + t, x, np.array([1.0, 0.0]))
    return np.sum(-0.5 * (z**2 + np.log(2 * np.pi)), -1) + RATE * x.size, z


def with_costs(f, y, ts):
    """The decay, and what it costs: the integral of its square."""

    def rate(t, state):
        dy = -RATE * state[:-1] + f(t)
        return np.append(dy, np.sum(dy**2))

    ys = heun(rate, np.append(y, 0.0), ts)
    return ys[:, :-1], ys[:, -1:]


CONTINUOUS = ("backsolve", "gauss", "reversible")  # with the gradient of the exact solution, or of another discrete one
ADJOINTS = ("auto", "forward", *CONTINUOUS)
ALIKE = [*itertools.product(("Own", "LatentODE", "LogODE"), ADJOINTS[1:])]  # a NeuralODE or NeuralCDE in the end
ALIKE += [(name, "reversible") for name in ("AugmentedODE", "SecondOrder", "WithCosts", "NeuralDAE", "MassMatrixODE")]


# --- the members ----------------------------------------------------------------------------------------------------

OPTIONS = {
    "batching": ("joint", "vmap"),
    "times": ("field", "call", "sample"),
    "time_dependent": (False, True),
    "controlled": (False, True),
    "on_state_update": ("raise", "discard"),
    "output": ("solution", "ys", "final"),
    "kind": ("array", "tree", "vector"),
}


def kinds(size):
    """A start of each kind, of `size` features and two samples."""
    values = np.sin(1.0 + np.arange(2 * size)).reshape(2, size)
    split = size // 2
    layout = lux.ComponentVector(a=np.zeros(split), b=np.zeros(size - split)).layout
    return {
        "array": values,
        "tree": {"a": values[:, :split], "b": values[:, split:]},
        "vector": lux.ComponentVector(jnp.asarray(values), layout),
    }


def pairs(size):
    """Pairs of them; "array" is one array."""
    one = kinds(size)
    both = {kind: (y, jax.tree.map(lambda y: 0.5 - y, y)) for kind, y in one.items()}
    return {"array": one["array"], "tree": both["array"], "vector": both["vector"]}


def start_times_control(y, ts, u):
    parts = tuple(part for part in (y, ts, u) if part is not None)
    return parts if len(parts) > 1 else y


def data(y, ts, u):
    """The start as data at all times."""
    xs = jax.tree.map(lambda y: jnp.broadcast_to(y[:, None], (len(y), 3, *y.shape[1:])), y)
    return (ts, xs) if u is None else (ts, xs, u)


@dataclass
class Member:
    """An equation, what it starts from, its loop in NumPy, and what it refuses, by option and value."""

    make: Callable[..., lux.Layer]
    starts: Callable[[], dict[str, Any]] = lambda: kinds(3)
    loop: Callable[..., Any] = decay
    refuses: dict[tuple[str, Any], str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=lambda: FIXED)
    only: dict[str, tuple] = field(default_factory=dict)  # values of options, where the others are as good as these
    x: Callable[..., Any] = start_times_control
    batch_first: bool = False  # in the output, always
    known_times: bool = False
    adjoints: dict[str, str] = field(default_factory=dict)  # refused, with the sentence

    def takes(self) -> dict[str, tuple]:
        values = OPTIONS | self.only
        return {name: tuple(v for v in values[name] if (name, v) not in self.refuses) for name in OPTIONS}


def refuse(option, *values, says):
    return dict.fromkeys(((option, value) for value in values), says)


NO_GAUSS = dict.fromkeys(("gauss", "reversible"), "takes one ordinary differential equation")
NO_TREE = refuse("kind", "tree", says=r"is one array of shape \(\.\.\., features\)")
NO_PAIR = refuse("kind", "array", says=r"is the pair \(x, v\)|the pair \(q, p\)|the tuple \(\(q, p\), times\)")
DATA = refuse("times", "field", says="has no option 'ts'") | refuse("kind", "tree", says="one array")
CONST = {"kind": ("array", "tree"), "times": ("field", "call", "sample")}


def same(layer, cls, **options):
    """A layer of another class with the same options."""
    return cls(**layer.options(), **options)


FAMILY = {
    "NeuralODE": Member(lambda net, still, **o: lux.NeuralODE(net, **o)),
    "Own": Member(lambda net, still, **o: Own(net, **o), only={"output": ("ys",), "kind": ("array",)}),
    "Jumps": Member(
        lambda net, still, **o: lux.NeuralODE(
            net, jumps=lux.Jumps([0.75], lambda t, y, ps: jax.tree.map(lambda y: y + 1, y)),
            events=[lux.Event(lambda t, y, ps: t - 0.6, lambda t, y, ps: jax.tree.map(lambda y: 2 * y, y))], **o),
        loop=hybrid),
    "SplitODE": Member(lambda net, still, **o: lux.SplitODE(net, still, **o),
                       adjoints={"reversible": "without parts"}),
    "AugmentedODE": Member(lambda net, still, **o: lux.AugmentedODE(lux.NeuralODE(net, **o), 1), loop=augmented,
                           refuses=NO_TREE),
    "SecondOrder": Member(lambda net, still, **o: lux.NeuralODE(lux.SecondOrder(net.replace(first=2)), **o),
                          lambda: pairs(2), oscillation, NO_PAIR),
    "WithCosts": Member(lambda net, still, **o: lux.WithCosts(lux.NeuralODE(net, **o), "kinetic"), loop=with_costs,
                        only={"kind": ("array", "vector")}),
    "NeuralDSDE": Member(lambda net, still, **o: lux.NeuralDSDE(net, still, **o),
                         only={"output": ("solution", "final")}, adjoints=NO_GAUSS),
    "NeuralSDE": Member(lambda net, still, **o: lux.NeuralSDE(net, still.replace(noises=True), **o),
                        only={"output": ("ys",), "kind": ("tree", "vector")}, adjoints=NO_GAUSS),
    "NeuralDDE": Member(lambda net, still, **o: lux.NeuralDDE(net.replace(first=3), [0.5], **o),
                        refuses=NO_TREE | refuse("times", "sample", says=r"have shape \(times,\)"),
                        options={"solver": diffrax.Heun(), "dt0": STEP}, known_times=True,
                        adjoints=dict.fromkeys(ADJOINTS[1:], "a NeuralDDE has no adjoint")),
    "adaptive DDE": Member(lambda net, still, **o: lux.NeuralDDE(net.replace(first=3), [0.5], adaptive=True, **o),
                           refuses=NO_TREE, only={"times": ("call", "sample"), "output": ("ys",),
                                                  "on_state_update": ("discard",)},
                           adjoints=dict.fromkeys(ADJOINTS[1:], "a NeuralDDE has no adjoint")),
    "NeuralDAE": Member(lambda net, still, **o: lux.NeuralDAE(net.replace(first=1), same(still, Twice), **o),
                        lambda: kinds(2), constrained, NO_TREE, only={"output": ("ys",)}),
    "MassMatrixODE": Member(lambda net, still, **o: lux.MassMatrixODE(same(net, DecayAndTwice), [1, 0], **o),
                            lambda: kinds(2), constrained, NO_TREE, only={"output": ("final",)}),
    "HamiltonianODE": Member(lambda net, still, **o: lux.HamiltonianODE(same(still, Kinetic), same(net, Well), **o),
                             lambda: pairs(2), symplectic, NO_PAIR,
                             {"solver": diffrax.SemiImplicitEuler(), "dt0": STEP, "max_steps": 8},
                             adjoints=NO_GAUSS | {"backsolve": "SemiImplicitEuler wants its parts",
                                         "reversible": "takes explicit Runge-Kutta methods"}),
    "NeuralCDE": Member(lambda net, still, **o: lux.NeuralCDE(same(net, AlongTime), lambda x: x[..., 1:], **o),
                        lambda: kinds(1), refuses=DATA | refuse("controlled", True, says="no controlled: its data"),
                        x=data),
    "LogODE": Member(lambda net, still, **o: lux.NeuralCDE(same(net, AlongTime), lambda x: x[..., 1:], window=2,
                                                           depth=1, interpolation="linear", **o),
                     lambda: kinds(1), refuses=DATA | refuse("controlled", True, says="no controlled: its data"),
                     x=data, only={"output": ("ys",), "kind": ("array",), "on_state_update": ("raise",)}),
    "ODERNN": Member(lambda net, still, **o: lux.ODERNN(Adding(), net, **o), lambda: kinds(1), observed,
                     DATA | refuse("output", "solution", says="many solves in a row"), x=data),
    "LatentODE": Member(
        lambda net, still, **o: lux.LatentODE(lambda tx: jnp.concatenate([tx[1][:, 0], 0 * tx[1][:, 0]], -1),
                                              lux.NeuralODE(net, **o), lambda z: z),
        lambda: kinds(2), refuses=refuse("times", "field", says="build them without `ts`")
        | refuse("controlled", True, says="without .*`controlled`") | refuse("output", "final", says="at all times"),
        x=data, only={"kind": ("array",)}, batch_first=True),
    "CNF": Member(lambda net, still, **o: lux.CNF(net.replace(takes_time=True), **o), loop=density,
                  x=lambda y, ts, u: y, refuses=refuse("times", "field", says="has no option 'ts'")
                  | refuse("output", "solution", "ys", says="a CNF has no output") | NO_TREE
                  | refuse("controlled", True, says="no controlled: a condition")
                  | refuse("time_dependent", True, says="no time_dependent: its model"), only={"times": ("call",)}),
}  # fmt: skip


# --- the cases ------------------------------------------------------------------------------------------------------


@functools.cache
def in_pairs(options: tuple[tuple[str, tuple], ...]) -> list[dict[str, Any]]:
    """Few choices of all options such that each two values of two options are together in one of them."""
    names = [name for name, _ in options]
    choices = [dict(zip(names, values, strict=True)) for values in itertools.product(*(vs for _, vs in options))]
    choices = [c for c in choices if c["times"] != "sample" or c["batching"] == "vmap"]
    pairs = [frozenset(itertools.combinations(choice.items(), 2)) for choice in choices]
    few, draw = choices, random.Random(0)
    for _ in range(20):
        missing, found = frozenset().union(*pairs), []
        while missing:
            i = max(range(len(choices)), key=lambda i: (len(pairs[i] & missing), draw.random()))
            missing -= pairs[i]
            found.append(choices[i])
        few = min(few, found, key=len)
    return few


def taken(member: Member) -> list[dict[str, Any]]:
    return in_pairs(tuple(member.takes().items()))


def plain(member: Member) -> dict[str, Any]:
    """The first value of each option that the member takes."""
    return {name: values[0] for name, values in member.takes().items()}


def refused(member: Member) -> list[tuple[dict[str, Any], str]]:
    """The refused values one by one, with the first of all others; and times for each sample of a joint solve."""
    refuses = dict(member.refuses)
    if "sample" in member.takes()["times"]:
        refuses["times", "sample"] = "with batching='vmap'"
    vmap = ("times", "sample") in member.refuses
    return [
        (plain(member) | {name: value} | ({"batching": "vmap"} if vmap and value == "sample" else {}), says)
        for (name, value), says in refuses.items()
    ]


TAKEN = [(name, case) for name, member in FAMILY.items() for case in taken(member)]
REFUSED = [(name, case, says) for name, member in FAMILY.items() for case, says in refused(member)]


def exhaustive(case: tuple, everyday: bool) -> Any:
    """The case, left out of the everyday tests unless it is one of them."""
    return pytest.param(*case, marks=() if everyday else pytest.mark.exhaustive)


def text(value: Any) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else value if value in FAMILY else ""


def build(name: str, case: dict[str, Any], **more: Any) -> lux.Layer:
    """The layer, with `more` options."""
    member = FAMILY[name]
    still = Still(case["time_dependent"], case["controlled"])
    net = same(still, Decay, draws=case["on_state_update"] == "discard")
    options = {n: v for n, v in case.items() if n not in ("times", "kind")}
    if case["times"] == "field":
        options["ts"] = TIMES[0]
    return member.make(net, still, **{**member.options, **options, **more})


def start(name: str, case: dict[str, Any], factor: Any = 1.0) -> Any:
    """The input, from `factor` times the start."""
    member = FAMILY[name]
    y = jax.tree.map(lambda y: factor * jnp.asarray(y), member.starts()[case["kind"]])
    ts = {"field": None, "call": TIMES[0], "sample": TIMES}[case["times"]]
    return member.x(y, ts, control(case["batching"] == "vmap") if case["controlled"] else None)


def control(of_samples: bool) -> diffrax.AbstractPath:
    """`1 + t`, for the second sample twice that."""
    ts, ys = jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0])
    if not of_samples:
        return diffrax.LinearInterpolation(ts, ys)
    return jax.vmap(diffrax.LinearInterpolation)(jnp.stack([ts, ts]), jnp.stack([ys, 2 * ys]))


def expected(name: str, case: dict[str, Any], factor: float = 1.0) -> list[np.ndarray]:
    """The arrays of the output, by a loop for each sample, from `factor` times the start."""
    member, of_samples = FAMILY[name], case["batching"] == "vmap"

    def one(i):
        def rest(t):
            scale = 1 + i if of_samples else 1
            return (t if case["time_dependent"] else 0.0) + (scale * (1 + t) if case["controlled"] else 0.0)

        start = jax.tree.map(lambda y: factor * np.asarray(y)[i], member.starts()[case["kind"]])
        ts = TIMES[i] if case["times"] == "sample" else TIMES[0]
        if member.loop in (oscillation, symplectic):
            return member.loop(rest, tuple(map(np.asarray, start)), ts)
        found = [member.loop(rest, np.asarray(y), ts) for y in jax.tree.leaves(start)]
        return found[0] if isinstance(found[0], tuple) else found

    samples = list(zip(one(0), one(1), strict=True))
    final = {len(samples) - 1} if name == "WithCosts" else set()  # the costs, at the end
    final = range(len(samples)) if case["output"] == "final" else final
    axis = 0 if of_samples or member.batch_first else 1
    return [np.stack([a[-1], b[-1]]) if i in final else np.stack([a, b], axis) for i, (a, b) in enumerate(samples)]


def values_of(name: str, out: Any) -> list[jax.Array]:
    """The arrays of an output that are expected."""
    if name == "WithCosts":
        ys, costs = values_of("", out[0]), out[1]["kinetic"]
        return [*ys, costs]
    if name == "LatentODE":
        return [out.xs]
    return jax.tree.leaves(out.ys if isinstance(out, diffrax.Solution) else out)


def drawn(st: Any) -> list[jax.Array]:
    return [key for path, key in jax.tree_util.tree_leaves_with_path(st) if path[-1].key == "draw"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), [exhaustive(taken, i % 3 == 0) for i, taken in enumerate(TAKEN)], ids=text)
def test_what_an_equation_takes_is_the_solve(name, case):
    layer, x = build(name, case), start(name, case)
    ps, st = lux.setup(jax.random.key(0), layer)
    st = lux.testmode(st)
    known = FAMILY[name].known_times
    out, after = jax.jit(lambda x_, ps, st: layer(x if known else x_, ps, st))(x, ps, st)
    for got, want in zip(values_of(name, out), expected(name, case), strict=True):
        np.testing.assert_allclose(got, np.reshape(want, got.shape), rtol=1e-12, atol=1e-13)
    assert jax.tree.structure(after) == jax.tree.structure(st)
    if case["on_state_update"] == "discard":  # renewed once
        (before,), (now,) = drawn(st), drawn(after)
        assert now == jax.random.split(before)[0]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["SplitODE", "WithCosts", "NeuralDSDE", "NeuralDAE", "HamiltonianODE", "adaptive DDE"])
def test_the_last_time_repeated_is_padding(name, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "TIMES", np.array([[0.0, 0.5, 1.0], [0.25, 0.5, 0.5]]))
    test_what_an_equation_takes_is_the_solve(name, plain(FAMILY[name]) | {"batching": "vmap", "times": "sample"})


@pytest.mark.parametrize(("name", "case", "sentence"), REFUSED, ids=text)
def test_what_an_equation_does_not_take_is_refused_by_name(name, case, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        layer, x = build(name, case), start(name, case)
        layer(x, *lux.setup(jax.random.key(0), layer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adjoint"),
    [
        exhaustive(pair, pair[1] == "auto" or pair[0] == "NeuralODE")
        for pair in itertools.product(FAMILY, ADJOINTS)
        if pair not in ALIKE
    ],
)
def test_derivatives_by_every_adjoint_are_differences_of_the_loop(name, adjoint, monkeypatch):
    """By the rate and by the start. `"direct"` is in the contract of each layer. Steps are small for `CONTINUOUS`."""
    member = FAMILY[name]
    here, case = sys.modules[__name__], plain(member)
    monkeypatch.setattr(here, "STEP", 1 / 64)
    steps = {"dt0": STEP, "max_steps": 128, "adjoint": adjoint}
    if adjoint in member.adjoints:
        with pytest.raises((ValueError, NotImplementedError), match=member.adjoints[adjoint]):
            layer = build(name, case, **steps)
            layer(start(name, case), *lux.setup(jax.random.key(0), layer))
        return
    layer = build(name, case, **steps)
    ps, st = lux.setup(jax.random.key(0), layer)
    st = lux.testmode(st)
    assert ps.size == 1  # the rate

    def loss(z):
        out, _ = layer(start(name, case, z[1]), ps + z[0], st)
        return sum(jnp.sum(y**2) for y in values_of(name, out))

    derivative = jax.jit((jax.jacfwd if adjoint == "forward" else jax.grad)(loss))
    program = derivative.lower(jnp.array([0.0, 1.0]))
    assert "callback" not in program.as_text()
    got = program.compile()(jnp.array([0.0, 1.0]))

    def by_loop(rate, factor):
        monkeypatch.setattr(here, "RATE", rate)
        return sum(np.sum(y**2) for y in expected(name, case, factor))

    h, rate = 1e-5, RATE
    want = [by_loop(rate + h, 1) - by_loop(rate - h, 1), by_loop(rate, 1 + h) - by_loop(rate, 1 - h)]
    np.testing.assert_allclose(got, np.array(want) / (2 * h), rtol=1e-3 if adjoint in CONTINUOUS else 1e-7)


FIXED_ONLY = ("NeuralDSDE", "NeuralSDE", "NeuralDDE", "HamiltonianODE")


@pytest.mark.slow
@pytest.mark.parametrize("name", [exhaustive((name,), name in ("NeuralODE", "ODERNN")) for name in FAMILY])
def test_the_program_of_an_adaptive_solve_and_its_gradient_has_no_callback(name, monkeypatch):
    case = plain(FAMILY[name]) | {"batching": "vmap"}
    if name not in FIXED_ONLY:
        monkeypatch.setattr(FAMILY[name], "options", {})
    layer = build(name, case)
    ps, st = lux.setup(jax.random.key(0), layer)

    def loss(ps, x):
        return sum(jnp.sum(y) for y in values_of(name, layer(x, ps, lux.testmode(st))[0]))

    assert "callback" not in jax.jit(jax.value_and_grad(loss)).lower(ps, start(name, case)).as_text()


def test_the_number_of_cases():
    """So that none is lost: what is taken and compared, and what is refused."""
    adjoints = len(FAMILY) * len(ADJOINTS) - len(ALIKE)
    refused = sum(len(member.adjoints) for member in FAMILY.values())
    print(f"{len(FAMILY)} equations: {len(TAKEN)} cases taken, {len(REFUSED)} refused")
    print(f"{adjoints - refused} pairs with an adjoint taken, {refused} refused")
    assert {name for name, _ in TAKEN} == set(FAMILY)
