"""The tutorial of a Bayesian universal differential equation, with few steps."""

import runpy
from pathlib import Path

import numpy as np
import pytest

for name in ("numpyro", "blackjax", "arviz"):
    pytest.importorskip(name)

SCRIPT = Path(__file__).parent.parent.parent / "tutorials" / "bayesian_lynx_hare.py"


@pytest.mark.exhaustive  # it compiles for long
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # ArviZ, of few draws
def test_few_steps_of_the_tutorial(tmp_path, capsys):
    run = runpy.run_path(SCRIPT)["run"]
    summary, posterior, covered = run(tmp_path, chains=2, warmup=20, draws=10)
    assert posterior.params.shape[:2] == (2, 10) and np.isfinite(posterior.params.data).all()
    assert {"u0[hare]", "sigma[0]", "physics.growth"} <= set(summary.index)
    assert (tmp_path / "bayesian_forecast.png").stat().st_size > 10_000
    error = float(capsys.readouterr().out.split("in log(pelts): ")[1].split()[0])
    assert error < 0.01  # of the fixed steps, against errors of measurement of 0.2
    assert all(0 <= share <= 1 for shares in covered.values() for share in shares)
