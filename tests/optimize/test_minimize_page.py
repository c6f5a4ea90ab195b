"""The code of docs/minimize.md runs, in the order it stands there."""

import re
from pathlib import Path

import jax

PAGE = Path(__file__).parent.parent.parent / "docs" / "minimize.md"


def test_the_code_of_the_page_runs():
    namespace = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), namespace)
    assert namespace["refined"].shape == (64, 2) and namespace["root"].success
