"""Writes the tables and pictures of the documentation from `results/`: by itself, or at the end of `run.py`.

A page marks where a table stands by the script and the name that it has there. What is between the marks is replaced:

    <!-- table bench_fit steps -->

    <!-- end -->

`<!-- table machines -->` says when and on what all results were measured; `<!-- picture growth: words -->`
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
    """When each script ran, by machines and Pythons, with the libraries that they use."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for script, result in found.items():
        machine, versions = result["machine"], dict(result["versions"])
        on = f"{machine['cores']} cores, {machine['processor']}, {machine['system']}, Python {versions.pop('python')}"
        groups.setdefault(on, {})[script] = {**result, "versions": versions}
    return "\n\n".join(machine_table(on, ran) for on, ran in groups.items())


def machine_table(on: str, ran: dict[str, dict[str, Any]]) -> str:
    """The libraries in a sentence; those of which scripts used different versions are in the table."""
    used: dict[str, set[str]] = {}
    for result in ran.values():
        for library, version in result["versions"].items():
            used.setdefault(library, set()).add(version)
    one = ", ".join(f"{library} {min(versions)}" for library, versions in used.items() if len(versions) == 1)
    differ = [library for library, versions in used.items() if len(versions) > 1]
    rows = [("script", "date", "commit", "load at its start", "seconds", "with")]
    for script, result in ran.items():
        own = ", ".join(f"{name} {result['versions'][name]}" for name in differ if name in result["versions"])
        rows.append((script, result["date"], result.get("commit"), result["machine"]["load"], result["seconds"], own))
    columns, *rows = rows if differ else [row[:-1] for row in rows]
    return f"{on}; {one}.\n\n{timing.markdown(columns, rows)}"


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
