"""The page docs/export.md runs as it stands there, its scripts and its server in processes of their own."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import lux_sciml as lux

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
NEEDED = ("tensorflow", "tritonclient", "onnx", "onnxruntime", "ai_edge_litert")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs a line of the page in the test's folder; gives what it prints, of processes in the background nothing."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    programs = {"python": [sys.executable], "lux-sciml": [sys.executable, "-m", "lux_sciml.command"]}
    environment = os.environ | {"PYTHONPATH": str(Path(lux.__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    background = []

    def run(line):
        program, *arguments = shlex.split(line.replace("8123", port).removesuffix("&"))
        command = [*programs.get(program, [program]), *arguments]
        if line.endswith("&"):
            background.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            return ""
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
        return done.stdout

    yield run
    for process in background:
        process.kill()
        process.wait()


@pytest.mark.exhaustive
def test_the_page_runs(shell, capsys):
    for module in NEEDED:
        pytest.importorskip(module)
    printed, namespace = {}, {"__name__": "page"}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for language, block in re.findall(r"```(python|sh|c)\n(.*?)```", PAGE.read_text(), re.DOTALL):
            name = re.match(r"(?:#|//) (\w+\.\w+)\n", block)
            if name:
                Path(name[1]).write_text(block)
            elif language == "python":
                exec(compile(block, "export.md", "exec"), namespace)
            else:
                printed |= {line: shell(line) for line in block.splitlines()}
    assert float(namespace["loss"](namespace["ps"], namespace["batch"])) < 1e-3
    assert "<exported NeuralODE: (u: float32[batch, 2]) -> (path: float32[11, batch, 2])>" in capsys.readouterr().out
    assert printed["python alone.py"] == "(11, 1, 2) ('cpu', 'cuda', 'rocm', 'tpu')\n"
    assert printed["python in_tensorflow.py"] == printed["python in_litert.py"] == "(11, 1, 2)\n"
    assert printed["python in_onnxruntime.py"] == "(11, 2, 2) lux-sciml\n"
    end = namespace["truth"](namespace["jnp"].array([[1.0, 0.0]]), {}, {})[0][-1, 0, 0]
    assert abs(float(printed["./swing"]) - end) < 0.1 and printed["python plain.py"] == "(2, 1)\n"
    described, shape, error = printed["python client.py 8123"].splitlines()
    assert described == "[{'name': 'u', 'datatype': 'FP32', 'shape': [-1, 2]}]" and shape == "(11, 2, 2)"
    assert "the input 'u' has the shape (batch, 2), where a name stands for any size above zero" in error
    assert "NeuralODE" in printed["lux-sciml info oscillator.stablehlo"]
