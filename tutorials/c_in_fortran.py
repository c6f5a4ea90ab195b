# %% [markdown]
# # A learned closure in a Fortran code
#
# Cells move and divide: $u_t = (D(u)\, u_x)_x + G(u)\, u$. How diffusivity $D$ and growth rate $G$ depend on the
# density is learned by two nets, from scratch assays, in which prostate cancer cells close a gap of half a millimeter
# (Jin et al., Journal of Theoretical Biology 390, 2016, as tabulated by Lagergren et al., PLOS Computational Biology
# 16, e1008462, 2020). Then the nets move into a Fortran program that knows nothing of Python: as C source, with the
# derivatives that its implicit steps need. There it computes a front that travels through 40 millimeters.

# %%
import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from matplotlib import pyplot as plt

import lux_sciml as lux

lux.plot.style()
jax.config.update("jax_enable_x64", True)

# %%
WIDTH, STEPS = 6, 60
CELLS, DAYS = 4000, 20  # of the Fortran program: points of its grid, and the time it computes

# %% [markdown]
# ## The data
#
# Six experiments that differ in the number of cells seeded; each has the density at 37 positions, counted at five
# times. Densities are in units of 1700 cells per square millimeter, about what fills the dish. The experiment of 16,000
# cells is kept for the test; the other five are fitted, beginning from their first profiles.

# %%
table = np.loadtxt("data/scratch_assay.csv", delimiter=",", comments=("#", "seeded"))
seeded = np.unique(table[:, 0])
density = np.stack([table[table[:, 0] == n, 2:].T for n in seeded], 1) / 1700.0  # (times, experiments, positions)
ts, dx = np.arange(5) / 2.0, 0.05  # days, millimeters
fitted, held = seeded != 16000, seeded == 16000

# %% [markdown]
# ## The closure
#
# One layer, from the density to $(D, G u)$. In the equation it is called for all positions at once; the flux between
# two is the mean of their diffusivities times the slope, and none leaves at the ends.


# %%
class Closure(lux.Container):
    diffusivity: lux.Layer
    growth: lux.Layer

    def forward(self, u, ps, st):
        (d, g), st = self.run(ps, st, diffusivity=u, growth=u)
        return jnp.concatenate([0.1 * jax.nn.softplus(d), g * u], -1), st


def rates(u, closure):
    d, source = jnp.moveaxis(closure(u[..., None]), -1, 0)
    flux = (d[..., 1:] + d[..., :-1]) / 2 * jnp.diff(u) / dx
    still = jnp.zeros_like(flux[..., :1])
    return jnp.diff(jnp.concatenate([still, flux, still], -1)) / dx + source


def solver(closure):
    node = lux.NeuralODE(lux.UDE(lambda u, p, nets: rates(u, nets.closure), closure=closure), ts=ts, output="ys")
    return node, *lux.setup(jax.random.key(0), node)


start = lux.initializers.Normal(0.3)
net = lux.MLP(1, WIDTH, 1, init_weight=start)
learned = Closure(net, net)
node, ps, st = solver(learned)

# %% [markdown]
# The baseline is the equation of Fisher, Kolmogorov, Petrovsky and Piskunov, with constant $D$ and
# $G = r\,(1 - u/K)$, fitted in the same way. Both have a prior on their parameters, as ten times weaker residuals: it
# matters where the data say nothing.


# %%
class Fisher(lux.Layer):
    def init_params(self, key):
        return {"d": jnp.array(-1.0), "r": jnp.array(1.0), "k": jnp.array(1.0)}

    def forward(self, u, ps, st):
        growth = ps["r"] * u * (1 - u / ps["k"])
        return jnp.concatenate([0.1 * jax.nn.softplus(ps["d"]) * jnp.ones_like(u), growth], -1), st


def fit(node, ps, st):
    def residuals(ps):
        us, _ = node(density[0][fitted], ps, st)
        return {"data": us[1:] - density[1:][:, fitted], "prior": 0.1 * ps.data}

    return lux.least_squares(residuals, ps, max_steps=STEPS, tol=1e-6).params


def report(name, node, ps, st):
    us, _ = node(density[0], ps, st)
    errors = [1700 * np.sqrt(np.mean((us - density)[1:, part] ** 2)) for part in (fitted, held)]
    print(f"{name:12}{ps.size:4} parameters; cells per square mm off: {errors[0]:5.1f} fitted, {errors[1]:5.1f} test")


ps = fit(node, ps, st)
report("nets", node, ps, st)
fisher = solver(Fisher())
fisher_ps = fit(*fisher)
report("Fisher-KPP", fisher[0], fisher_ps, fisher[2])

# %% [markdown]
# ## The closure as C source
#
# `save` writes C99 with the weights as constants, and a Fortran module with its interfaces. With `jvp=True` there is
# `closure_jvp(n, x, x_dot, y, y_dot)` beside `closure_forward`: with `x_dot = 1` it gives $dD/du$ and $d(Gu)/du$.

# %%
folder = tempfile.TemporaryDirectory()
source = Path(folder.name) / "closure.c"
at_rest = lux.testmode(st["closure"])
lux.export.save(source, learned, ps.closure, at_rest, jnp.zeros((1, 1)), jvp=True, dtype=jnp.float64)
for path in sorted(source.parent.iterdir()):
    print(f"{path.name:12}{len(path.read_text().splitlines()):4} lines")
print("\n".join(line for line in source.with_suffix(".f90").read_text().splitlines() if "subroutine" in line))

# %% [markdown]
# ## The Fortran program
#
# Backward Euler's method, by Newton's: each iteration calls the closure once for the whole grid, and solves a
# tridiagonal system by Thomas's algorithm. On this grid explicit steps would have to be fifty times shorter.

# %%
fortran = """
subroutine advance(n, u, dx, dt, steps) bind(c)
  use, intrinsic :: iso_c_binding
  use closure
  integer(c_int), value :: n, steps
  real(c_double), value :: dx, dt
  real(c_double), intent(inout) :: u(n)
  real(c_double) :: v(1, n), one(1, n), y(2, n), d(2, n), r(n), lo(n), di(n), up(n), flux, left, right, w
  integer :: step, iteration, i
  one = 1
  do step = 1, steps
    v(1, :) = u
    do iteration = 1, 3
      call closure_jvp(n, v, one, y, d)
      r = u - v(1, :) + dt*y(2, :)
      di = 1 - dt*d(2, :)
      lo = 0
      up = 0
      do i = 1, n - 1
        w = dt/(2*dx**2)
        flux = w*(y(1, i) + y(1, i + 1))*(v(1, i + 1) - v(1, i))
        left = w*(d(1, i)*(v(1, i + 1) - v(1, i)) - y(1, i) - y(1, i + 1))
        right = w*(d(1, i + 1)*(v(1, i + 1) - v(1, i)) + y(1, i) + y(1, i + 1))
        r(i) = r(i) + flux
        r(i + 1) = r(i + 1) - flux
        di(i) = di(i) - left
        up(i) = -right
        lo(i + 1) = left
        di(i + 1) = di(i + 1) + right
      end do
      do i = 2, n
        w = lo(i)/di(i - 1)
        di(i) = di(i) - w*up(i - 1)
        r(i) = r(i) - w*r(i - 1)
      end do
      r(n) = r(n)/di(n)
      do i = n - 1, 1, -1
        r(i) = (r(i) - up(i)*r(i + 1))/di(i)
      end do
      v(1, :) = v(1, :) + r
    end do
    u = v(1, :)
  end do
end subroutine advance
"""

# %% [markdown]
# Where there is no Fortran compiler, the same loop in C is compiled, so that this notebook runs everywhere; what was
# compiled is printed below.

# %%
c = """
#include <stdlib.h>
#include "closure.h"
void advance(int n, double *u, double dx, double dt, int steps) {
  double *m = malloc(10*n*sizeof(double)), *v = m, *one = v + n, *y = one + n, *d = y + 2*n;
  double *r = d + 2*n, *lo = r + n, *di = lo + n, *up = di + n, w = dt/(2*dx*dx);
  for (int step = 0; step < steps; step++) {
    for (int i = 0; i < n; i++) { v[i] = u[i]; one[i] = 1; }
    for (int iteration = 0; iteration < 3; iteration++) {
      closure_jvp(n, v, one, y, d);
      for (int i = 0; i < n; i++) { r[i] = u[i] - v[i] + dt*y[2*i + 1]; di[i] = 1 - dt*d[2*i + 1]; }
      for (int i = 0; i < n - 1; i++) {
        double slope = v[i + 1] - v[i], both = y[2*i] + y[2*i + 2], flux = w*both*slope;
        double left = w*(d[2*i]*slope - both), right = w*(d[2*i + 2]*slope + both);
        r[i] += flux; r[i + 1] -= flux;
        di[i] -= left; up[i] = -right; lo[i + 1] = left; di[i + 1] += right;
      }
      for (int i = 1; i < n; i++) { double q = lo[i]/di[i - 1]; di[i] -= q*up[i - 1]; r[i] -= q*r[i - 1]; }
      r[n - 1] /= di[n - 1];
      for (int i = n - 2; i >= 0; i--) r[i] = (r[i] - up[i]*r[i + 1])/di[i];
      for (int i = 0; i < n; i++) v[i] += r[i];
    }
    for (int i = 0; i < n; i++) u[i] = v[i];
  }
  free(m);
}
"""

# %%
compiler = next(filter(None, map(shutil.which, ("gfortran", "flang", "ifx"))), None)
(source.parent / "advance.f90").write_text(fortran)
(source.parent / "advance.c").write_text(c)
fast = ["-O3", "-march=native", "-fPIC"]
vector = ["-fno-math-errno", "-fno-trapping-math", "-D__FAST_MATH__"]  # tanh of several numbers at once, see the guide
subprocess.run(["cc", *fast, *vector, "-c", "closure.c"], cwd=folder.name, check=True)
files = ["closure.f90", "advance.f90"] if compiler else ["advance.c"]
command = [compiler or "cc", *fast, "-shared", *files, "closure.o", "-o", "advance.so", "-lm"]
subprocess.run(command, cwd=folder.name, check=True)
print("compiled:", *files)

library = ctypes.CDLL(str(source.parent / "advance.so"))
number, integer = ctypes.c_double, ctypes.c_int
array = np.ctypeslib.ndpointer(np.float64, 1, flags="C")
library.advance.argtypes, library.advance.restype = [integer, array, number, number, integer], None

# %% [markdown]
# ## The same in Python
#
# For comparison: the same steps with NumPy, SciPy's banded solver, and the closure as a compiled function of JAX. It
# stands for a simulation that calls Python for its closure.


# %%
@jax.jit
def closure_jvp(v):
    return jax.jvp(lambda v: learned(v[:, None], ps.closure, at_rest)[0].T, (v,), (jnp.ones_like(v),))


def advance(u, dx, dt, steps):
    w = dt / (2 * dx**2)
    for _ in range(steps):
        v = u.copy()
        for _ in range(3):
            y, d = map(np.asarray, closure_jvp(v))
            slope, both = np.diff(v), y[0][1:] + y[0][:-1]
            left, right = w * (d[0][:-1] * slope - both), w * (d[0][1:] * slope + both)
            flux = np.pad(w * both * slope, 1)
            bands = np.zeros((3, len(v)))
            bands[0, 1:], bands[2, :-1] = -right, left
            bands[1] = 1 - dt * d[1] - np.append(left, 0) + np.append(0, right)
            v += scipy.linalg.solve_banded((1, 1), bands, u - v + dt * y[1] + np.diff(flux))
        u = v
    return u


# %% [markdown]
# ## A front
#
# Cells fill the first two millimeters of a strip of 40, and move on. Every day we note where the density is half of
# 1700.

# %%
length, dt = 40.0, 0.02
grid = (np.arange(CELLS) + 0.5) * length / CELLS
u0 = np.where(grid < 2.0, 1.0, 0.0)
a_day = round(1 / dt)


def front(u):
    return float(np.interp(-0.5, -u, grid))


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


u, profiles, inside = u0.copy(), [u0], []
for _ in range(DAYS):
    inside.append(seconds(lambda: library.advance(CELLS, u, length / CELLS, dt, a_day)))
    profiles.append(u.copy())
expected = advance(u0, length / CELLS, dt, a_day)
outside = [seconds(lambda: advance(u0, length / CELLS, dt, a_day)) for _ in range(3)]
print(f"a day: {1e3 * min(inside):.0f} ms compiled, {1e3 * min(outside):.0f} ms calling Python")
print(f"largest difference after a day: {np.abs(profiles[1] - expected).max():.1e}")

# %% [markdown]
# A front of such an equation moves at least at the speed $2\sqrt{D(0)\,G(0)}$ of the cells at its tip, and faster
# where diffusivity grows with density, as it does here.

# %%
places = np.array([front(u) for u in profiles])
speed = np.diff(places)[-1]
d, source = jax.jvp(lambda u: learned(u, ps.closure, at_rest)[0], (jnp.zeros(1),), (jnp.ones(1),))
slowest = 2 * np.sqrt(d[0] * source[1])
print(f"the front moves {speed:.3f} mm on the last day; the speed of its tip is {slowest:.3f} mm a day")
folder.cleanup()

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.3))
v = np.linspace(0.01, 1.05, 50)[:, None]
for name, closure, p, style in (("nets", learned, ps, "C0"), ("Fisher-KPP", Fisher(), fisher_ps, "C1")):
    d, growth = np.asarray(closure(v, p.closure, st["closure"] if closure is learned else {})[0]).T
    left.plot(1700 * v, 10 * d, style, label=f"10 D (mm²/day), {name}")
    left.plot(1700 * v, growth / v[:, 0], style, ls="--", label=f"G (1/day), {name}")
left.set(xlabel="cells per mm²", title="what was learned")
left.legend(fontsize="x-small")
x = np.unique(table[:, 1])
for k in (0, 2, 4):
    middle.plot(x, 1700 * density[k, held][0], "k.")
    for layer, p, state, style in ((node, ps, st, "C0"), (fisher[0], fisher_ps, fisher[2], "C1")):
        middle.plot(x, 1700 * layer(density[0], p, state)[0][k, held][0], style, lw=1)
middle.set(xlabel="mm", ylabel="cells per mm²", title="test: days 0, 1, 2", ylim=(0, None))
for u in profiles[::4]:
    right.plot(grid, 1700 * u, "C0", lw=1)
_ = right.set(xlabel="mm", title="the front, every four days")

# %% [markdown]
# ## What to see
#
# Left, what the nets have found in five experiments: cells that touch one another move more, a tenfold diffusivity, and
# divide less, as Lagergren et al. found with nets of another kind, from each experiment alone. With constant $D$ the
# gap closes in the wrong way, flat and too soon; on the experiment that was held out the error falls from 113 to 85
# cells per square millimeter, in counts that scatter by about that much from well to well.
#
# Right, the compiled program takes these two curves where no experiment went: through a strip of 40 millimeters, for
# twenty days. Its front is steep and slow, for the diffusivity at its tip is small, and it is pushed from behind: its
# speed is above that of the tip. Behind it the density rises to 2300, more than was ever counted; there $G$ is an
# extrapolation, and so is the plateau.
#
# The program and the steps in Python agree to rounding. How much faster it is depends on the grid and on the machine,
# which did other things as well. In both programs most of the time is the closure's hyperbolic tangents, and compiled
# functions of JAX are good at these; what the Fortran program saves is the rest, and that it has no Python to carry
# along, start, or keep at the right version. Where the whole simulation can be written in JAX, `jax.jit` of all of it
# is the better way.
#
# Next: `vjp=True` for adjoint codes, `params="input"` to calibrate the weights inside the simulation, and single
# precision, are in [the guide](../docs/export.md); a model behind a server in [A trained model,
# served](export_and_serving.ipynb).
