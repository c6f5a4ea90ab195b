"""The README's code runs, in the order it stands there."""

import re
from pathlib import Path

import jax

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run(capsys):
    namespace = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(compile(block, "README.md", "exec"), namespace)
    printed = re.search(r"```\n(Chain\(.*?)```", README, re.DOTALL).group(1)
    assert capsys.readouterr().out == printed
    assert namespace["result"].value < 0.05
