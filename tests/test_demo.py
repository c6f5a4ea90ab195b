"""`make demo`: it runs, draws, and finds what it says it finds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.exhaustive
def test_the_universal_equation_forecasts_best(tmp_path, run_script):
    pytest.importorskip("matplotlib")
    printed = run_script(ROOT / "demo" / "demo.py", tmp_path)
    assert len(list((tmp_path / "demo_output").glob("*.png"))) == 3
    table = printed.split("error of the position")[1]
    plain, universal, alone = (
        float(re.search(rf"{name}.* ([\d,.]+|lost)\n", table).group(1).replace(",", "").replace("lost", "inf"))
        for name in ("Newton, round Earth", "universal equation", "neural ODE")
    )
    assert universal < plain / 100 and universal < alone / 100
