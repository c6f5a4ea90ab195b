"""Runs the benchmarks, all or those that are named, and writes what they measured and the tables of the pages.

    python benchmarks/run.py [--quick] [--list] [bench_fit bench_layers ...]

What a script has measured comes into `results/`, one file a script, where it ran to its end; the others go on without
it, and the exit status says that one failed. `--quick` runs the most telling part in a few minutes, and only prints.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pages
import timing

HERE = Path(__file__).parent
SCRIPTS = {path.stem: path for path in sorted(HERE.glob("bench_*.py"))}
QUICK = {  # with arguments
    "bench_import": [],
    "bench_train_step": [],
    "bench_fit": [],
    "bench_layers": ["dense"],
    "bench_neural_ode": ["short"],
    "bench_equilibrium": ["--part", "medium"],
}
LONGEST = 3600  # seconds a script


def run(name: str, arguments: list[str], quick: bool) -> str:
    """Run a script to its end: "" or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / f"{name}.json"
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        environment |= {"LUX_BENCH_QUICK": "1"} if quick else {"LUX_BENCH_RECORD": str(record)}
        try:
            status = subprocess.run(
                [sys.executable, SCRIPTS[name], *arguments], env=environment, timeout=LONGEST, cwd=HERE.parent
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not done after {LONGEST} s"
        if status:
            return f"exit status {status}"
        if not quick:
            if not record.exists():
                return "recorded nothing"
            pages.RESULTS.mkdir(exist_ok=True)
            (pages.RESULTS / record.name).write_text(record.read_text() + "\n")
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="scripts, all by default")
    parser.add_argument("--quick", action="store_true", help="the most telling part, which is only printed")
    parser.add_argument("--list", action="store_true", help="the scripts, and what they took the last time")
    options = parser.parse_args()
    names = [Path(name).stem for name in options.names] or list(QUICK if options.quick else SCRIPTS)
    if unknown := set(names) - set(SCRIPTS):
        parser.error(f"there is no {', '.join(sorted(unknown))} in {HERE}")
    if options.list:
        took = {name: result["seconds"] for name, result in pages.results().items()}
        timing.table(("script", "seconds"), [(name, took.get(name)) for name in names])
        return 0
    rows = []
    for name in names:
        print(f"\n=== {name}\n", flush=True)
        start = time.perf_counter()
        wrong = run(name, QUICK.get(name, []) if options.quick else [], options.quick)
        rows.append((name, round(time.perf_counter() - start), wrong or "done"))
    print()
    timing.table(("script", "seconds", ""), rows)
    failed = any(wrong != "done" for *_, wrong in rows)
    if not options.quick:
        try:
            pages.write()
        except Exception:  # the results are written
            traceback.print_exc()
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
