"""How long `import lux_sciml` takes, against its core dependencies alone: fresh processes, in turns, medians."""

import os
import statistics
import subprocess
import sys
import time

IMPORTS = {
    "jax, diffrax, optimistix, optax": "import jax, diffrax, optimistix, optax",
    "lux_sciml": "import lux_sciml",
}
TURNS = 15


def seconds(code):
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.perf_counter() - start


def main():
    for code in IMPORTS.values():  # compiles the bytecode
        seconds(code)
    rounds = [{name: seconds(code) for name, code in IMPORTS.items()} for _ in range(TURNS)]
    for name in IMPORTS:
        print(f"{name:35s} {statistics.median(turn[name] for turn in rounds):6.3f} s")
    core, ours = IMPORTS
    print(f"ratio, median of {TURNS} turns: {statistics.median(turn[ours] / turn[core] for turn in rounds):.3f}")


if __name__ == "__main__":
    main()
