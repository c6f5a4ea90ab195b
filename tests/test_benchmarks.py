"""The tables of the pages are those of the results; what scripts record is what they print. Nothing is timed here."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def modules(monkeypatch):
    """benchmarks/pages.py and timing.py, which are scripts in no package."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import pages
    import timing

    yield pages, timing
    for name in ("pages", "timing"):
        sys.modules.pop(name)


def test_pages_have_the_tables_of_the_results(modules):
    pages, _ = modules
    found = pages.results()
    assert all((ROOT / "benchmarks" / f"{script}.py").exists() for script in found)
    for page in pages.DOCS.glob("*.md"):
        text = page.read_text()
        assert pages.filled(text, found) == text, f"{page.name} differs: python benchmarks/pages.py"
        marks = [words for _, kind, words, _ in pages.MARK.findall(text) if kind == "table" and words != "machines"]
        assert {words.split()[0] for words in marks} <= set(found), "a table without results: make bench ONLY=..."
        assert text.count("<!-- end -->") == len(pages.MARK.findall(text))


def test_all_tables_of_the_results_are_shown(modules):
    pages, _ = modules
    text = "".join(page.read_text() for page in pages.DOCS.glob("*.md"))
    shown = {words for _, kind, words, _ in pages.MARK.findall(text) if kind == "table"}
    assert {f"{name} {table['name']}" for name, x in pages.results().items() for table in x["tables"]} <= shown


def test_a_table_is_recorded_and_comes_into_a_page(modules, monkeypatch, tmp_path, capsys):
    pages, timing = modules
    monkeypatch.setenv("LUX_BENCH_RECORD", str(tmp_path / "bench_x.json"))
    times = timing.medians({"lux_sciml": [1e-3, 2e-3, 4e-3], "floor: nothing": [1e-3] * 3, "peer": [0.5, 0.5, 0.25]})
    rows = [(name, 1e3 * t, f"{t.spread:.0%}", t / times["peer"], float("nan")) for name, t in times.items()]
    timing.table(("step", "median (ms)", "spread", "ratio", "none"), rows, "some steps")
    printed = capsys.readouterr().out.strip()
    assert "| lux_sciml      | 2           | 38%    | 0.004 |      |" in printed
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    found = pages.results()
    (table,) = found["bench_x"]["tables"]
    (group,) = table["timed"]
    assert [timed["kind"] for timed in group] == ["ours", "floor", "peer"]
    assert group[0] == {"name": "lux_sciml", "kind": "ours", "seconds": 0.002, "quartiles": [0.0015, 0.003], "turns": 3}
    assert json.dumps(found) and found["bench_x"]["machine"]["cores"] and found["bench_x"]["versions"]["jax"]
    page = pages.filled(
        "<!-- table bench_x some steps -->\nold\n<!-- end -->\n<!-- table bench_y a -->\nold\n<!-- end -->", found
    )
    assert page.startswith(f"<!-- table bench_x some steps -->\n\n{printed}\n\n<!-- end -->") and page.count("old") == 1
    assert pages.filled(page, found) == page
    with pytest.raises(KeyError, match="renamed"):
        pages.filled("<!-- table bench_x renamed -->\n<!-- end -->", found)
