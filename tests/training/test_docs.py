"""The code of docs/training.md runs, in the order it stands there."""

import re
from pathlib import Path

import jax

PAGE = Path(__file__).parent.parent.parent / "docs" / "training.md"


def test_the_code_of_the_page_runs(capsys):
    namespace = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), namespace)
    assert "all 320 steps made" in capsys.readouterr().out
    result = namespace["result"]
    assert result.history["loss"].shape == (160, 3) and result.best.step.shape == (3,)
    assert namespace["state"].step == 320
