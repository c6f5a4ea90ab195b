"""Runs of several processes, of which one is killed or frozen: how soon the others end, and what is resumed.

python benchmarks/kill_processes.py [--processes 4]
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import timing

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "distributed"))
from launch import Run

STEP = 50


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    count = parser.parse_args().processes
    timing.machine()
    same = {}
    for many in (1, 2, count):
        run = Run("same", many)
        run.ended()
        same[many] = [line for line in run.said[0] if isinstance(line, dict) and "how" in line]
    rows = [(many, line["how"], *line["losses"]) for many, lines in same.items() for line in lines]
    timing.table(("processes", "how", "loss 1", "loss 10", "loss 50"), rows)
    print()
    with tempfile.TemporaryDirectory() as folder:
        run = Run("run", count, folder)
        run.ended()
        unbroken = run.last()
    rows = []
    for name, index, kind in (
        ("worker killed", count - 1, signal.SIGKILL),
        ("coordinator killed", 0, signal.SIGKILL),
        ("worker frozen", 1, signal.SIGSTOP),
        ("coordinator frozen", 0, signal.SIGSTOP),
    ):
        with tempfile.TemporaryDirectory() as folder:
            run = Run("run", count, folder)
            listener = count - 1 if index == 0 else 0
            run.until(STEP, listener)
            run.send(index, kind)
            status, seconds = run.ended(timeout=60, but=[index])
            words = [run.words(i) for i in range(count) if i != index]
            again = Run("run", count, folder)
            again.ended()
            found = again.last()
            same = found["end"] == unbroken["end"] and found["loss"] == unbroken["loss"]
            first = min(line["step"] for line in again.said[0] if isinstance(line, dict) and "step" in line)
        rows.append((name, seconds, str(status), max(map(len, words)), first, "yes" if same else "NO"))
        print(f"{name}: {words[0]}\n", flush=True)
    head = ("what", "the others end in (s)", "with status", "lines each", "resumed at step", "same numbers")
    timing.table(head, rows)


if __name__ == "__main__":
    main()
