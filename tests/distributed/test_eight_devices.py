"""Eight virtual devices: what is computed, where it lies, and what the compiled program moves; see eight.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    flags = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    root = str(HERE.parent.parent)
    done = subprocess.run(
        [sys.executable, HERE / "eight.py"],
        env={**flags, "PYTHONPATH": root, "NPROC": "32"},  # threads, without which collectives wait for one another
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads(done.stdout)
    assert not [text for text in parts.values() if isinstance(text, str)], parts
    return parts


@pytest.mark.exhaustive
def test_the_page(found):
    assert 0 < found["page"] < 100


def test_losses_are_those_of_one_device(found):
    for name, case in found["losses"].items():
        if isinstance(case, float):
            assert case < 3e-6, (name, case)
            continue
        assert case["off"] < 3e-6, (name, case)
        if name == "patterns":
            assert (case["spec"], case["batch"]) == ("P(None, 'model')", ["data"])
            continue
        assert case["parameters off"] < 1e-5 and case["ema off"] < 1e-5 and case["same names"] and case["same place"]
        mine, whole = case["parts"]
        assert mine * (8 if name.endswith("full") else 1) == whole


def test_fit_is_that_of_one_device(found):
    case = found["fits"]
    for name in ("loss", "validation_loss", "loader", "members"):
        assert case[name] < 1e-5, (name, case)
    mine, whole = case["members' parts"]
    assert 8 * mine == whole and case["members' collectives"] == []


def test_collectives_and_memory_of_the_compiled_program(found):
    temporary = {"deep": 2.3e6, "transformer": 6.1e6}  # those of a prototype
    for name, case in found["programs"].items():
        kinds = [(kind, in_loop) for kind, _, _, in_loop in case["collectives"]]
        inside = [kind for kind, in_loop in kinds if in_loop]
        outside = [kind for kind, in_loop in kinds if not in_loop]
        if name in temporary:
            assert sorted(inside) in (["all-gather"] * 2 + ["all-reduce"], ["all-gather"] * 2 + ["reduce-scatter"])
            assert outside == []
            row = {size for _, size, _, _ in case["collectives"]}
            layers = {"deep": 16, "transformer": 6}[name]
            assert {trips for _, _, trips, _ in case["collectives"]} == {layers}
            assert row == {case["size"] * 4 // layers}
            assert case["temporary"] <= 1.2 * temporary[name], case
        elif name == "chain trainable":  # that part of it once more
            assert inside == [] and sorted(outside) == ["all-gather"] * 2 + ["all-reduce"]
            assert min(size for _, size, _, _ in case["collectives"]) <= 4 * (case["size"] // 8 + 1024)
            continue
        else:  # gathered once, and summed once, whatever the parts of the batch
            assert inside == []
            assert sorted(outside) == ["all-gather"] * ("replicated" not in name) + ["all-reduce"]
        expected = 3 * 4 * case["size"] / (1 if "replicated" in name else 8) + case["batch"] / 8
        assert expected <= case["arguments"] <= expected + 3 * 4 * 1024 + 100


def test_the_estimate_is_what_the_compiler_counts(found):
    for name, n, case, (state, work, gathered, summed, moved) in found["formula"]:
        arguments = case["arguments"] - case["batch"] // n
        assert state <= arguments <= state + 100, (name, n)
        inputs = 16 * 64 * 256 * 4 // n if name == "rows" else 0  # of the blocks, which a checkpoint keeps
        assert work <= case["temporary"] <= 1.15 * (work + inputs) + 1e4, (name, n, case)
        totals = {"all-gather": 0, "all-reduce": 0}
        for kind, size, trips, _ in case["collectives"]:
            totals[kind] += size * trips
        assert totals["all-gather"] == gathered and abs(totals["all-reduce"] - summed) <= 4
        assert moved == (gathered + 2 * summed) * (n - 1) // n


@pytest.mark.parametrize(
    "name, says",
    {
        "batch": "ValueError: a batch of 60 samples cannot be divided equally among 8 devices",
        "fit": "ValueError: a batch of 20 samples cannot be divided",
        "accumulate": "ValueError: accumulate=3 cuts the first axis of the batch into 3 equal parts on each of 8",
        "axis": "ValueError: 'weight' names the axis 'model'; the mesh has 'devices'",
        "pattern": "ValueError: the pattern 'wait' matches no parameter; the first ones are: bias, weight",
        "divides": "ValueError: `weight` of shape (2, 1) cannot be divided as",
        "size": "TypeError: the size is a whole number of parameters, got 1.5",
        "axes": "ValueError: `weight` of shape (2, 1) cannot be divided as",
        "flat": "TypeError: patterns give axes to the arrays of a tree, got a flat vector",
        "tree": 'TypeError: how="full" divides one flat ComponentVector',
        "how": "ValueError: how is one of 'replicated', 'full', 'members', or a dict of patterns, got 'fully'",
        "mesh": "ValueError: a mesh has as many places as devices: mesh(data=3, model=2) does not fit 8 devices",
        "no mesh": "TypeError: the second argument is a mesh",
        "members": "ValueError: 3 members cannot be divided equally among 8 devices",
        "one member": 'ValueError: how="members" divides an ensemble',
        "ensemble": 'ValueError: an ensemble of 3 members is divided by how="members"',
        "rows": "ValueError: `rows` has rows of 544 elements, which 3 devices do not divide: Stack(..., flat_rows=3)",
        "trainable": 'ValueError: how="full" divides stacks of flat rows whose parameters are all trained',
        "mean": 'ValueError: how="full" stores parameters in parts, filled up with zeros, and this optimizer',
        "memory": 'ValueError: how="full" stores parameters in parts, filled up with zeros, and this optimizer',
        "norms": 'ValueError: how="full" stores parameters in parts, rows of stacks as arrays of their own',
        "mask": 'ValueError: how="full" stores parameters in parts, which this optimizer does not take: give masks',
        "axis twice": "ValueError: 'weight' names an axis twice",
        "device twice": "ValueError: a mesh has each device once",
        "called": "ValueError: these are not the parameters of this Dense: `pad_` is unknown. `lux.distributed.gather`",
        "called with rows": "ValueError: these are not the parameters of this Chain: `layer_0` is missing. `lux.distri",
        "shard": "ValueError: the vector holds (128,) of the 1024 elements that its names stand for: it is a shard",
    }.items(),
)
def test_what_is_wrong_is_a_sentence(found, name, says):
    assert found["refused"][name].startswith(says)
