"""How long `import lux_sciml` takes, against its core dependencies alone: fresh processes, in turns, medians."""

import os
import subprocess
import sys
import time

import timing

IMPORTS = {
    "floor: jax, diffrax, optimistix, optax": "import jax, diffrax, optimistix, optax",
    "lux_sciml": "import lux_sciml",
}
TURNS = 5 if timing.QUICK else 15


def seconds(code):
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.perf_counter() - start


def main():
    timing.machine()
    for code in IMPORTS.values():  # compiles the bytecode
        seconds(code)
    rounds = [{name: seconds(code) for name, code in IMPORTS.items()} for _ in range(TURNS)]
    times = timing.medians({name: [turn[name] for turn in rounds] for name in IMPORTS})
    floor = next(iter(times.values()))
    rows = [(name, float(t), f"{t.spread:.0%}", t / floor) for name, t in times.items()]
    timing.table(("a process that imports", "seconds", "spread", "times the floor"), rows, "import")


if __name__ == "__main__":
    main()
