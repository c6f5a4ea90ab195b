"""Vanguard 1, the oldest satellite in orbit: Newton's law, a net for what it leaves out, and five days of forecast.

Simulated positions of two days are given, with an error of 200 m. Three models are fitted to them and forecast the five
days that follow: Newton's law for a round Earth; the same law with a net for how the Earth's field depends on the
latitude, a universal differential equation; and a net alone, a neural ODE. Run it with `make demo`.

The orbit starts where Vallado, Crawford, Hujsak and Kelso, "Revisiting Spacetrack Report #3", AIAA 2006-6753, have the
satellite, and follows the field of the World Geodetic System 1972, whose constants the fits do not know.
"""

import time
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import lux_sciml as lux

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OUTPUT = Path("demo_output")
TRAINED = 2 * 288 + 1  # positions, one every 5 minutes
LAST = 49  # positions of the last four hours
NOISE = 2e-4  # megameters: 200 m
WIDE = 2.0  # standard deviation of the prior of the weights
EARTH = 6.378135  # radius at the equator in megameters
WGS72 = {"GM": 398600.8, "J2": 1.082616, "J3": -0.00253881, "J4": -0.00165597}
START = np.array([7.02246529, -1.40008297, 0.03995155, 1.893841015, 6.405893759, 4.534807250])  # 27 June 2000, 18:50
PUBLISHED = {
    "GM (km^3/s^2)": WGS72["GM"],
    "distance at the start (km)": float(1e3 * np.linalg.norm(START[:3])),
    "speed at the start (km/s)": float(np.linalg.norm(START[3:])),
}
STAGES = ((37, 30), (289, 40), (TRAINED, 100))  # positions, and steps: the first 3 hours, a day, both days

# --- the data: lengths in megameters, times in kiloseconds, so that all numbers are about 1 to 100 ------------------


def track():
    """Times, positions with noise, which are all that the fits see, and the exact ones."""

    def potential(x):
        r = jnp.linalg.norm(x)
        s, near = x[2] / r, EARTH / r
        zonal = {2: (3 * s**2 - 1) / 2, 3: (5 * s**3 - 3 * s) / 2, 4: (35 * s**4 - 30 * s**2 + 3) / 8}
        return -1e-3 * WGS72["GM"] / r * (1 - sum(1e-3 * WGS72[f"J{n}"] * near**n * zonal[n] for n in zonal))

    ts = jnp.arange(0.0, 7 * 86.4 + 0.1, 0.3)
    exactly = options | dict(rtol=1e-12, atol=1e-12, max_steps=16384)
    motion = lux.NeuralODE(lambda u: jnp.concatenate([u[3:], -jax.grad(potential)(u[:3])]), ts=ts, **exactly)
    exact = motion(START, {}, {})[0][:, :3]
    return ts, exact + NOISE * np.random.default_rng(1).normal(size=exact.shape), exact


# --- the models ----------------------------------------------------------------------------------------------------


def round_earth(u, p, nets):
    x, speed = u[:3], u[3:]
    return jnp.concatenate([speed, -p.GM * x / jnp.linalg.norm(x) ** 3])


def universal(u, p, nets):
    def potential(x):  # what the round Earth leaves out falls off with the cube of the distance, by a law of latitude
        r = jnp.linalg.norm(x)
        return -p.GM / r * (1 + 1e-3 * (EARTH / r) ** 2 * nets.shape_of_earth(x[2:] / r)[0])

    return jnp.concatenate([u[3:], -jax.grad(potential)(u[:3])])


def net_alone(u, p, nets):
    return jnp.concatenate([u[..., 3:], nets.acceleration(u[..., :3] / EARTH)], -1)


small = lux.initializers.Normal(0.05)
net = lux.Chain(lux.Dense(1, 2, jnp.tanh), lux.Dense(2, 1, init_weight=small))
wide = lux.Chain(lux.Dense(3, 32, jnp.tanh), lux.Dense(32, 32, jnp.tanh), lux.Dense(32, 3))
options = dict(output="ys", rtol=1e-9, atol=1e-9, solver=diffrax.Dopri8(), max_steps=4096)
NODES = {
    "Newton, round Earth": lux.NeuralODE(lux.UDE(round_earth, {"GM": 400.0}), **options),
    "universal equation": lux.NeuralODE(lux.UDE(universal, {"GM": 400.0}, shape_of_earth=net), **options),
    "neural ODE": lux.NeuralODE(lux.UDE(net_alone, acceleration=wide), output="ys", rtol=1e-6, atol=1e-6),
}


# --- the fits ------------------------------------------------------------------------------------------------------


def orbit(name):
    """The orbit of a model as a function of its parameters, the state at the start among them, and of the times."""
    node = NODES[name]
    _, st = lux.setup(jax.random.key(0), node)
    return lambda ps, ts: node((ps.start, ts), ps.model, st)[0]


def fit_orbit(name, ts, xs, begin=None):
    """Least squares over a growing part of the positions. Returns the last result, and those of all stages."""
    speed = np.polyfit(ts[:5], xs[:5], 2)[1]
    start = np.concatenate([xs[0], speed]) if begin is None else begin.start
    model, _ = lux.setup(jax.random.key(1), NODES[name])
    ps, solve, results = lux.ComponentVector(start=start, model=model), orbit(name), []
    weights = ps.layout.mask("model.shape_of_earth") if "shape_of_earth" in model else np.zeros(ps.size, bool)

    def residual(ps, seen):  # what is not yet seen counts zero, so that all stages are one program
        miss = solve(ps, ts[:TRAINED])[:, :3] - xs[:TRAINED]
        return {"orbit": seen[:, None] * miss / NOISE, "prior": ps.data[weights] / WIDE}

    method = lux.LevenbergMarquardt(1e-6, 1e-6, geodesic=None)
    for positions, steps in STAGES:
        seen = (np.arange(TRAINED) < positions).astype(float)
        result = lux.least_squares(residual, ps, args=seen, method=method, max_steps=steps)
        ps = result.params
        results.append(result)
        say(f"{name}, {ts[positions - 1] / 3.6:.0f} hours", result)
    return results


def fit_net(ts, xs):
    """The accelerations of the smoothed positions, then arcs of an hour that must join: multiple shooting."""
    ts, xs, node = ts[:TRAINED], xs[:TRAINED], NODES["neural ODE"].replace(max_steps=64)
    ps, st = lux.setup(jax.random.key(1), node)
    _, speeds = lux.diffeq.collocate(xs, ts, kernel="tricube", bandwidth=0.7 / ts[-1])
    _, accelerations = lux.diffeq.collocate(speeds, ts, kernel="tricube", bandwidth=0.7 / ts[-1])
    states = jnp.concatenate([xs, speeds], -1)

    def by_accelerations(ps):
        return jnp.mean((node.model(states, ps, st)[0][:, 3:] - accelerations) ** 2)

    def by_arcs(ps):
        arcs = dict(group_size=13, starts=ps.starts, loss=lambda ys, xs: jnp.sum((ys[:, :3] - xs) ** 2))
        return lux.diffeq.multiple_shooting(node, ps.model, st, xs, ts, **arcs)[0]

    first = lux.minimize(by_accelerations, ps, method="L-BFGS-B", max_steps=500)
    say("neural ODE, accelerations", first)
    ps = lux.ComponentVector(starts=states[:-1:12], model=first.params)
    second = lux.minimize(by_arcs, ps, method="L-BFGS-B", max_steps=60)
    say("neural ODE, arcs of an hour", second)
    return [first, second], lux.ComponentVector(start=second.params.starts[0], model=second.params.model)


def say(stage, result):
    print(f"  {stage:<32} {result.steps:4d} steps   loss {result.value:.3g}", flush=True)


# --- what was found ------------------------------------------------------------------------------------------------


def constants(ps):
    distance, speed = jnp.linalg.norm(ps.start[:3]), jnp.linalg.norm(ps.start[3:])
    return dict(zip(PUBLISHED, (1e3 * ps.model.physics.GM, 1e3 * distance, speed), strict=True))


def said(kilometers):
    if not np.isfinite(kilometers):
        return "lost"
    return f"{kilometers:,.{2 if kilometers < 10 else 0}f}"


def plot_forecast(ts, xs, errors, curves, band):
    """All errors over the week; the last hours of it; and there the universal equation alone, with its band."""
    days, hours, last = ts / 86.4, (ts - ts[-1]) / 3.6, slice(-LAST, None)
    figure, axes = plt.subplot_mosaic([["week", "week"], ["orbit", "close"]], figsize=(9, 6.4))
    for name, error in errors.items():
        axes["week"].semilogy(days, error, label=name)
    axes["week"].axvspan(0, days[TRAINED - 1], color="0.93", zorder=0)
    axes["week"].annotate("fitted", (0.06, 0.6), color="0.4")
    axes["week"].set(xlabel="days", ylabel="error of the position (km)", xlim=(0, days[-1]), ylim=(5e-3, 5e4))
    axes["week"].legend(loc="center left", bbox_to_anchor=(0.3, 0.42))
    axes["orbit"].plot(hours[last], 1e3 * xs[last, 2], "k.", label="simulated, not fitted")
    for color, name in zip(("C0", "C1"), curves, strict=False):
        axes["orbit"].plot(hours[last], 1e3 * curves[name][last, 2], "--", color=color, label=name)
    axes["orbit"].set(
        xlabel="hours before the end of the week", ylabel="north of the equator (km)", ylim=(-6500, 11000)
    )
    axes["orbit"].legend(loc="upper left")
    middle = curves["universal equation"][last, 2]
    low, high = (1e3 * (side - middle) for side in band)
    axes["close"].plot(hours[last], 1e3 * (xs[last, 2] - middle), "k.", label="simulated, not fitted")
    axes["close"].plot(hours[last], 0 * hours[last], "C1--", label="universal equation")
    axes["close"].fill_between(hours[last], low, high, color="C1", alpha=0.25, linewidth=0, label="95% of positions")
    axes["close"].set(xlabel="hours before the end of the week", ylabel="off the universal equation (km)")
    axes["close"].legend(loc="upper left", ncols=2, fontsize="small")
    axes["close"].margins(y=0.3)
    figure.savefig(OUTPUT / "forecast.png", dpi=150)


def plot_law(result):
    sines = jnp.linspace(-0.56, 0.56, 57)
    _, st = lux.setup(jax.random.key(0), net)

    def law(ps):
        shape = net(sines[:, None], ps.model.shape_of_earth, st)[0][:, 0]
        return shape - jnp.mean(shape)

    value, low, high = result.confidence_band(law)
    known = -WGS72["J2"] * (3 * sines**2 - 1) / 2
    degrees = np.degrees(np.arcsin(sines))
    figure, axis = plt.subplots()
    axis.plot(degrees, value, "C1", label="learned by the net, 95% band")
    axis.fill_between(degrees, low, high, color="C1", alpha=0.25, linewidth=0)
    axis.plot(degrees, known - known.mean(), "k--", label="published: flattening J2")
    axis.set(xlabel="latitude (degrees)", ylabel="shape of the potential, $10^{-3}\\,GM/r$")
    axis.legend()
    figure.savefig(OUTPUT / "shape_of_earth.png", dpi=150)


def plot_losses(stages):
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for i, (axis, (name, results)) in enumerate(zip(axes, stages.items(), strict=True)):
        axis.set_prop_cycle(color=[lux.plot.COLORS[i]])
        lux.plot.losses(results, ax=axis)
        axis.set_title(name)
    figure.savefig(OUTPUT / "losses.png", dpi=150)


def main():
    begin = time.perf_counter()
    jax.config.update("jax_enable_x64", True)
    lux.plot.style()
    OUTPUT.mkdir(exist_ok=True)
    ts, xs, exact = track()
    print("The orbit is simulated, in the field of WGS72, and 200 m of noise are added to the positions.")
    print(f"{TRAINED} positions of two days are fitted, {len(ts) - TRAINED} of five days are forecast.\n")
    print("stages of the fits")
    stages = {"Newton, round Earth": fit_orbit("Newton, round Earth", ts, xs)}
    stages["universal equation"] = fit_orbit("universal equation", ts, xs, stages["Newton, round Earth"][0].params)
    fitted = {name: results[-1].params for name, results in stages.items()}
    stages["neural ODE"], fitted["neural ODE"] = fit_net(ts, xs)

    for name in list(NODES)[:2]:
        value, low, high = stages[name][-1].confidence_band(constants)
        print(f"\n{name:<32} estimate     95% interval        published")
        for key, known in PUBLISHED.items():
            one, a, b = (f"{float(x[key]):.{2 if known > 10 else 5}f}" for x in (value, low, high))
            print(f"  {key:<28} {one:>10}  ({a}, {b})   {known:.{2 if known > 10 else 5}f}")

    curves = {name: orbit(name)(ps, ts) for name, ps in fitted.items()}
    errors = {name: 1e3 * np.linalg.norm(ys[:, :3] - exact, axis=1) for name, ys in curves.items()}
    print("\nerror of the position (km), root mean square     fitted days    forecast days     last day")
    of_last_day = {}
    for name, error in errors.items():
        parts = (error[:TRAINED], error[TRAINED:], error[-288:])
        sizes = [np.sqrt(np.mean(part**2)) for part in parts]
        print(f"  {name:<45}" + "".join(f"{said(size):>15}" for size in sizes))
        of_last_day[name] = sizes[-1]

    result, solve = stages["universal equation"][-1], orbit("universal equation")
    _, *band = result.confidence_band(lambda ps: solve(ps, ts)[-LAST:, 2] / NOISE, noise=True)
    plot_forecast(ts, xs, errors, curves, [NOISE * side for side in band])
    plot_law(result)
    plot_losses(stages)
    plain, best = (of_last_day[name] for name in list(NODES)[:2])
    print(
        "\nTo conclude: where most of the physics is known, a small net for the rest makes the forecast of the last day"
    )
    print(f"{plain / best:,.0f} times closer than the physics alone does, and the constants keep their meaning.")
    print(f"\nplots are in {OUTPUT.resolve()}; {time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
