"""Runs and saves killed at random moments: does each resumed run end with the same bits, is each file whole?

python benchmarks/kill_runs.py [--kills 50]

It needs the extra `test`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "training"))
from test_checkpoints import kill_and_resume

import lux_sciml as lux

SAVE = """
import itertools, sys, numpy as np, lux_sciml as lux
for i in itertools.count():
    lux.save(sys.argv[1], {"i": i, "x": np.full(3_000_000, i, np.float32)})
    print(i, flush=True)
"""


def kill_saves(folder, kills):
    """How often the file was whole after a kill, and how many temporary files are left at the end."""
    path, whole, wait = Path(folder) / "x.safetensors", 0, random.Random(0)
    for _ in range(kills):
        with subprocess.Popen([sys.executable, "-c", SAVE, str(path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(wait.uniform(0, 0.3))
            process.kill()
        tree = lux.load(path)
        whole += bool((tree["x"] == tree["i"]).all())
    lux.save(path, {})
    return whole, len(list(Path(folder).iterdir())) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as folder:
        whole, left = kill_saves(folder, kills)
    print(f"{kills} kills of a save: {whole} files whole, {left} temporary files left behind the next save")
    same, runs, each = 0, max(1, kills // 5), min(kills, 5)
    for seed in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            same += kill_and_resume(folder, each, seed)
    print(f"{runs} runs, each killed {each} times and resumed: {same} ended with the bits of a run that was not")


if __name__ == "__main__":
    main()
