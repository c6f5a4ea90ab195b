"""Writes the tables and pictures of the documentation from `results/`: by itself, or at the end of `run.py`.

A page marks where a table stands by the script and the name that it has there. What is between the marks is replaced:

    <!-- table bench_fit steps -->

    <!-- end -->

`<!-- table machines -->` is a table of all results, of what they were measured on; `<!-- picture growth: words -->`
shows the picture of that name, which is drawn anew where its figures are there. Marks without results keep what they
have.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import timing

ROOT = Path(__file__).parent.parent
DOCS, RESULTS = ROOT / "docs", Path(__file__).parent / "results"
MARK = re.compile(r"(<!-- (table|picture) ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURES = {"growth": "bench_gradient_cost"}  # and whose results they show


def results() -> dict[str, dict[str, Any]]:
    """What the scripts have measured, by their names."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def filled(page: str, found: dict[str, dict[str, Any]]) -> str:
    """The text of a page with its tables. A table that a script does not make any more raises `KeyError`."""

    def content(mark: re.Match) -> str:
        start, kind, words, end = mark.groups()
        if kind == "picture":
            name, _, caption = words.partition(": ")
            text = f"![{caption}](pictures/{name}.svg)" if PICTURES[name] in found else None
        elif words == "machines":
            text = machines(found) if found else None
        else:
            script, name = words.split(maxsplit=1)
            text = table(found[script], name) if script in found else None
        return mark[0] if text is None else f"{start}\n{text}\n\n{end}"

    return MARK.sub(content, page)


def table(result: dict[str, Any], name: str) -> str:
    for table in result["tables"]:
        if table["name"] == name:
            return timing.markdown(table["columns"], table["rows"])
    raise KeyError(f"no table {name!r} in {[table['name'] for table in result['tables']]}")


def machines(found: dict[str, dict[str, Any]]) -> str:
    """When and on what each script ran, and with which libraries."""
    rows = []
    for script, result in found.items():
        machine, versions = result["machine"], dict(result["versions"])
        on = f"{machine['cores']} cores, {machine['processor']}, {machine['system']}, Python {versions.pop('python')}"
        used = ", ".join(map(" ".join, versions.items()))
        rows.append((script, result["date"], on, machine["load"], result["seconds"], used))
    return timing.markdown(("script", "date", "machine", "load at its start", "seconds", "with"), rows)


def write() -> None:
    """Draw the pictures and fill the pages."""
    found = results()
    for name, script in PICTURES.items():
        if script in found:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, DOCS / "pictures" / "draw.py", name], check=True, env=environment)
    for path in DOCS.glob("*.md"):
        text = path.read_text()
        if (new := filled(text, found)) != text:
            path.write_text(new)


if __name__ == "__main__":
    write()
