"""Theophylline in the blood of twelve subjects: a compartment model with a learned absorption rate.

A dose that is swallowed passes from a depot into the blood, and out of it. The constants of that, and what makes each
subject absorb and clear faster or slower, are fitted to 132 concentrations with bounds, once by a constant rate of
absorption, which is the mixed-effects model of the textbooks, and once with a rate that a small net learns over time.
Doses are jumps of the depot, and each subject has measurement times of its own. The variances of the noise and of the
subjects are estimated too. Run it with `python tutorials/theophylline.py`; with `--short` it takes seconds.
"""

# %%
import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import lux_sciml as lux

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DATA = Path(__file__).parent / "data" / "theophylline.csv"
PUBLISHED = {"lKe": -2.454, "lKa": 0.451, "lCl": -3.227}  # Pinheiro and Bates, 2000, section 8.2: nlme's fit
EFFECTS = ("lKa", "lCl")  # what differs from subject to subject
SMALL = lux.initializers.Normal(0.05)


# %% The data: a long table, padded to one record


def load():
    """The series of concentrations of all subjects, and their doses in mg per kg of weight."""
    with DATA.open() as file:
        comment, header, *_ = file
    assert comment.startswith("#")
    columns = header.strip().split(",")
    table = dict(zip(columns, np.loadtxt(DATA, delimiter=",", comments=("#", "subject")).T, strict=True))
    table["subject"] = table["subject"].astype(int)
    options = {"id": "subject", "time": "time_h"}
    series = lux.diffeq.pad(table, values="concentration_mg_per_l", **options)
    return series, lux.diffeq.pad(table, values="dose_mg_per_kg", **options).values[:, 0, 0]


# %% The model


class OneCompartment(lux.Container):
    """depot' = -Ka(t) depot,  blood' = Ka(t) depot - Ke blood, log Ka(t) = lKa + net(t) - net(1), or lKa alone."""

    net: lux.Layer | None = None

    def init_params(self, key):
        constants = {"lKe": jnp.array(-2.0), "lKa": jnp.array(0.0), "lCl": jnp.array(-3.0)}
        return {**constants, **super().init_params(key)}

    def absorption(self, t, ps, st):
        """The rate Ka at a time after the dose."""
        if self.net is None:
            return jnp.exp(ps["lKa"])
        both = jnp.log1p(jnp.stack([t, jnp.ones_like(t)]))[:, None]
        (now, after_an_hour), _ = self.net.forward(both, ps["net"], st["net"])
        return jnp.exp(ps["lKa"] + now[0] - after_an_hour[0])

    def forward(self, x, ps, st):
        t, y = x
        absorbed, cleared = self.absorption(t, ps, st) * y.depot, jnp.exp(ps["lKe"]) * y.blood
        return lux.ComponentVector(depot=-absorbed, blood=absorbed - cleared), st


MODELS = {
    "constant absorption": OneCompartment(),
    "learned absorption": OneCompartment(
        lux.Chain(lux.Dense(1, 4, jnp.tanh), lux.Dense(4, 1, use_bias=False, init_weight=SMALL))
    ),
}


def equation(model):
    """The equation of one subject, whose dose is a jump of the depot at the time 0; amounts come with each call."""
    doses = lux.Jumps([0.0])
    return lux.NeuralODE(model, time_dependent=True, jumps=doses, output="ys", rtol=1e-5, atol=1e-7, max_steps=256)


def of_subjects(model):
    """The concentrations as a function of the parameters: `(subjects, times, 1)`."""
    node = equation(model)
    empty, (_, st) = lux.ComponentVector(depot=0.0, blood=0.0), lux.setup(jax.random.key(0), node)

    def concentrations(ps, series, doses):
        def one(effects, series, dose):
            own = {name: ps.fixed[name] + effects[name] if name in EFFECTS else ps.fixed[name] for name in PUBLISHED}
            own |= {"net": ps.fixed.net.tree()} if model.net is not None else {}
            ys, _ = node((empty, series, {"amounts": {"depot": dose[None]}}), own, st)
            return ys.blood[:, None] * jnp.exp(own["lKe"] - own["lCl"])  # over the volume of distribution, Cl / Ke

        return jax.vmap(one)({name: ps.effects[name] for name in EFFECTS}, series, doses)

    return concentrations


# %% The fit: Levenberg-Marquardt, and the variances in turn


def fit(model, series, doses, rounds):
    """The result of the last fit, and the standard deviations of the noise and of the subjects' effects.

    The constants, the net and the effects are found together, the effects held to zero by their variance. Then the
    variances are those of what was found and of what it leaves open: the steps of the EM algorithm, linearized.
    """
    concentrations = of_subjects(model)
    fixed, _ = lux.setup(jax.random.key(1), model)
    ps = lux.ComponentVector(fixed=fixed, effects={name: jnp.zeros(len(series)) for name in EFFECTS})
    lower, upper = (lux.ComponentVector(jnp.full(ps.size, side), ps.layout) for side in (-5.0, 5.0))
    lower, upper = (
        lower.replace(fixed={"lKe": -4.0, "lKa": -2.0, "lCl": -5.0}),
        upper.replace(fixed={"lKe": -1.0, "lKa": 3.0, "lCl": -1.0}),
    )
    weights = ps.layout.mask("*.weight", "*.bias") if model.net is not None else np.zeros(ps.size, bool)

    def residual(ps, args):
        series, doses, sigma, omega = args
        errors = jnp.where(series.mask[..., None], concentrations(ps, series, doses) - series.values, 0) / sigma
        return {
            "data": errors,
            "effects": {name: ps.effects[name] / omega[name] for name in EFFECTS},
            "net": ps.data[weights],  # a normal prior of the weights
        }

    sigma, omega = 1.0, dict.fromkeys(EFFECTS, 0.5)
    for _ in range(rounds):
        args = (series, doses, jnp.asarray(sigma), {name: jnp.asarray(x) for name, x in omega.items()})
        result = lux.least_squares(residual, ps, args=args, bounds=(lower, upper), max_steps=50)
        ps, errors = result.params, result.standard_errors(absolute=True)
        spread = {name: ps.effects[name] ** 2 + errors.effects[name] ** 2 for name in EFFECTS}
        omega = {name: float(jnp.sqrt(jnp.mean(x))) for name, x in spread.items()}
        free = ps.size - sum(float(jnp.sum(errors.effects[n] ** 2)) / omega[n] ** 2 for n in EFFECTS) - weights.sum()
        sigma *= float(jnp.sqrt(jnp.sum(residual(ps, args)["data"] ** 2) / (series.mask.sum() - free)))
    return result, sigma, omega


# %% What was found


def report(name, result, sigma, omega):
    low, high = result.confidence_intervals(0.95, absolute=True)
    print(f"\n{name}: {result.message}; noise {sigma:.3f} mg/l, "
          f"subjects {', '.join(f'{n} {x:.3f}' for n, x in omega.items())}")  # fmt: skip
    print("  constant    estimate   95 % interval       nlme")
    for constant, published in PUBLISHED.items():
        value, a, b = (float(x.fixed[constant]) for x in (result.params, low, high))
        print(f"  {constant:<10} {value:9.3f}   ({a:.3f}, {b:.3f})   {published:.3f}")


def plot_fits(path, series, doses, fitted):
    """The concentrations of each subject, and the fits."""
    figure, axes = plt.subplots(3, 4, figsize=(11, 7), sharex=True, sharey=True, layout="constrained")
    dense = np.linspace(0.0, 25.0, 101)
    curves = lux.diffeq.Series(np.stack([dense] * len(series)))
    for name, result in fitted.items():
        ys = of_subjects(MODELS[name])(result.params, curves, doses)
        for axis, y in zip(axes.flat, ys, strict=True):
            axis.plot(dense, y[:, 0], label=name)
    for axis, subject in zip(axes.flat, range(len(series)), strict=True):
        seen = series.mask[subject]
        axis.plot(series.times[subject][seen], series.values[subject, seen, 0], "ko", markersize=4)
        axis.set_title(f"subject {series.ids[subject]}", fontsize="small")
    axes[0, 0].legend(fontsize="x-small")
    figure.supxlabel("hours after the dose")
    figure.supylabel("theophylline (mg/l)")
    figure.savefig(path, dpi=120)


def plot_absorption(path, fitted):
    """The rate of absorption over time."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    ts = jnp.linspace(0.0, 8.0, 81)
    for name, result in fitted.items():
        model, ps = MODELS[name], result.params.fixed.tree()
        _, st = lux.setup(jax.random.key(0), model)
        axis.plot(ts, jax.vmap(lambda t, model=model, ps=ps, st=st: model.absorption(t, ps, st))(ts), label=name)
    axis.set(xlabel="hours after the dose", ylabel="Ka (per hour)", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for plots and parameters")
    parser.add_argument("--short", action="store_true", help="the constant absorption alone, fewer rounds")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    series, doses = load()
    print(f"{len(series)} subjects, {series.mask.sum()} concentrations at up to {series.times.shape[1]} times")
    fitted = {}
    for name, model in list(MODELS.items())[: 1 if options.short else None]:
        result, sigma, omega = fit(model, series, doses, 3 if options.short else 8)
        report(name, result, sigma, omega)
        fitted[name] = result
        lux.save(options.output / f"theophylline_{name.split()[0]}.safetensors", result.params)
    plot_fits(options.output / "theophylline_fits.png", series, doses, fitted)
    plot_absorption(options.output / "theophylline_absorption.png", fitted)
    print(f"\nplots and parameters are in {options.output.resolve()}; {time.perf_counter() - start:.0f} s in all")
    return fitted


# %%
if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
