"""The lynx and the hare: neural differential equations fitted to the record of a fur trade.

A universal differential equation knows that hares grow and lynxes die off, and learns how they meet; a plain neural ODE
knows nothing; the equations of Lotka and Volterra, with four constants, stand beside them. All are fitted to the years
1900-1914, by Adam and then by L-BFGS-B on one flat vector, and forecast the years 1915-1920. Run it with `make demo`.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import lux_sciml as lux

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DATA = Path(__file__).parent / "data" / "lynx_hare.csv"
TRAINED = 15  # years: 1900-1914
PENALTY = 3e-3  # on the squares of a net's weights
SMALL = lux.initializers.Normal(0.05)


class LotkaVolterra(lux.Layer):
    """d log H / dt = growth - b L,  d log L / dt = d H - decay, with constant rates of meeting b and d."""

    def init_params(self, key):
        return {"growth": jnp.array(0.55), "decay": jnp.array(0.84), "b": jnp.array(0.027), "d": jnp.array(0.027)}

    def forward(self, u, ps, st):
        hare, lynx = jnp.exp(u)
        return jnp.stack([ps["growth"] - ps["b"] * lynx, ps["d"] * hare - ps["decay"]]), st


class Interaction(lux.Container):
    """The same equations, where the rates of meeting are a net of both populations: the universal equation."""

    net: lux.Layer

    def init_params(self, key):
        return {"growth": jnp.array(0.55), "decay": jnp.array(0.84), **super().init_params(key)}

    def rates(self, u, ps, st):
        (y,), st = self.run(ps, st, net=u - 3.0)
        return 0.027 * jnp.exp(y), st

    def forward(self, u, ps, st):
        (b, d), st = self.rates(u, ps, st)
        hare, lynx = jnp.exp(u)
        return jnp.stack([ps["growth"] - b * lynx, d * hare - ps["decay"]]), st


MODELS = {
    "Lotka-Volterra": LotkaVolterra(),
    "universal": Interaction(lux.Chain(lux.Dense(2, 8, jnp.tanh), lux.Dense(8, 2, init_weight=SMALL))),
    "neural ODE": lux.Chain(
        lambda u: u - 3.0, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 16, jnp.tanh), lux.Dense(16, 2, init_weight=SMALL)
    ),
}


def load():
    """Years, times since the first one, and the logarithms of the thousands of pelts, `(years, 2)`."""
    table = np.loadtxt(DATA, delimiter=",", comments=("#", "year"))
    return table[:, 0].astype(int), jnp.asarray(table[:, 0] - table[0, 0]), jnp.asarray(np.log(table[:, 1:]))


def fit(name, model, ts, us):
    """The parameters of a model fitted to the first years, its solution as a function of them, and the losses."""
    node = lux.NeuralODE(model, output="ys", max_steps=512)
    ps, st = lux.setup(jax.random.key(1), node)
    ps = lux.ComponentVector(u0=us[0], model=ps)  # the start is fitted too
    weights = ps.layout.mask("*.weight", "*.bias") if name != "Lotka-Volterra" else np.zeros(ps.size)

    def solve(ps, ts):
        return node((ps.u0, ts), ps.model, st)[0]

    def loss(ps, data):
        ts, us, known = data
        misfit = jnp.sum(known * (solve(ps, ts) - us) ** 2) / jnp.sum(known * jnp.ones_like(us))
        return misfit + PENALTY * jnp.sum((weights * ps.data) ** 2)

    print(f"\n{name}\n{node}\n")
    start, losses = time.perf_counter(), []
    stages = [(optax.adam(0.02), 300, years) for years in ((TRAINED,) if name != "neural ODE" else (5, 10, TRAINED))]
    for method, steps, years in [*stages, ("L-BFGS-B", 500, TRAINED)]:
        known = (jnp.arange(TRAINED) < years)[:, None].astype(us.dtype)  # a growing horizon compiles once
        data = (ts[:TRAINED], us[:TRAINED], known)
        result = lux.minimize(loss, ps, method=method, args=data, max_steps=steps, progress=True)
        ps = result.params
        losses.append(result.history)
        optimizer = method if isinstance(method, str) else "Adam"
        print(f"{optimizer}, 1900-{1899 + years}: {result.message}; loss {result.value:.5f}")
    print(f"fitted in {time.perf_counter() - start:.1f} s")
    return ps, solve, losses


def errors(prediction, us):
    """Root mean square errors of the logarithms, of the years trained on and of the forecast."""
    squares = jnp.mean((prediction - us) ** 2, axis=1)
    return float(jnp.sqrt(jnp.mean(squares[:TRAINED]))), float(jnp.sqrt(jnp.mean(squares[TRAINED:])))


def plot_forecasts(path, years, us, curves):
    """Populations: the record, the fits, and the forecasts."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for i, (axis, species) in enumerate(zip(axes, ("hare", "lynx"), strict=True)):
        for name, (ts, ys) in curves.items():
            axis.plot(years[0] + ts, jnp.exp(ys[:, i]), label=name)
        axis.plot(years[:TRAINED], jnp.exp(us[:TRAINED, i]), "ko", label="pelts, trained on")
        axis.plot(years[TRAINED:], jnp.exp(us[TRAINED:, i]), "wo", markeredgecolor="k", label="pelts, forecast")
        axis.axvspan(years[TRAINED] - 0.5, years[-1], color="0.93")
        axis.set(ylabel=f"{species} (thousands)", ylim=(0, 1.6 * float(jnp.exp(us[:, i].max()))))
    axes[0].legend(ncols=2, fontsize="small")
    axes[1].set_xticks(years[::5])
    figure.savefig(path, dpi=120)


def plot_interaction(path, years, ts, learned, textbook):
    """What the hares lose and the lynxes gain by meeting, per head and year, along the fitted trajectory."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True, layout="constrained")
    for axis, i, title in zip(axes, (0, 1), ("loss of a hare, b L", "gain of a lynx, d H"), strict=True):
        axis.plot(years[0] + ts, learned[:, i], label="learned by the net")
        axis.plot(years[0] + ts, textbook[:, i], "--", label="Lotka-Volterra")
        axis.set(title=title, ylabel="per year", xticks=years[::5])
    axes[0].legend()
    figure.savefig(path, dpi=120)


def plot_losses(path, histories):
    """The losses of all stages, one after the other."""
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for name, losses in histories.items():
        axis.semilogy(np.concatenate(losses), label=name)
    axis.set(xlabel="step", ylabel="loss")
    axis.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for plots and parameters")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)  # a line search sees more digits
    start = time.perf_counter()

    years, ts, us = load()
    dense = jnp.linspace(ts[0], ts[-1], 201)
    print(lux.summary(MODELS["universal"], us[0]))
    fitted, solves, histories = {}, {}, {}
    for name, model in MODELS.items():
        fitted[name], solves[name], histories[name] = fit(name, model, ts, us)
        lux.save(folder / f"{name.lower().replace(' ', '_')}.safetensors", fitted[name])

    print("\nroot mean square errors of log(pelts)      1900-1914  1915-1920")
    for name, ps in fitted.items():
        trained, forecast = errors(solves[name](ps, ts), us)
        print(f"  {name:<40} {trained:9.3f}  {forecast:9.3f}")
    print("\nfitted constants (per year)                   growth      decay")
    for name in ("Lotka-Volterra", "universal"):
        print(f"  {name:<40} {fitted[name].model.growth:9.3f}  {fitted[name].model.decay:9.3f}")

    curves = {name: (dense, solves[name](ps, dense)) for name, ps in fitted.items()}
    plot_forecasts(folder / "forecasts.png", years, us, curves)
    ps = fitted["universal"].model
    _, st = lux.setup(jax.random.key(1), MODELS["universal"])
    path = curves["universal"][1]
    rates = jax.vmap(lambda u: MODELS["universal"].rates(u, ps.tree(), st)[0])(path)
    constants = jnp.stack([fitted["Lotka-Volterra"].model.b, fitted["Lotka-Volterra"].model.d])
    others = jnp.exp(path[:, ::-1])  # hares meet lynxes, lynxes meet hares
    plot_interaction(folder / "interaction.png", years, dense, rates * others, constants * others)
    plot_losses(folder / "losses.png", histories)
    print(f"\nplots and parameters are in {folder.resolve()}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
