"""`make demo`: it runs, draws, and finds what it says it finds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.exhaustive
def test_the_universal_equation_forecasts_best(tmp_path):
    pytest.importorskip("matplotlib")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "demo" / "demo.py")]
    environment = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert len(list((tmp_path / "demo_output").glob("*.png"))) == 3
    table = run.stdout.split("error of the position")[1]
    plain, universal, alone = (
        float(re.search(rf"{name}.* ([\d,.]+|lost)\n", table).group(1).replace(",", "").replace("lost", "inf"))
        for name in ("Newton, round Earth", "universal equation", "neural ODE")
    )
    assert universal < plain / 100 and universal < alone / 100
