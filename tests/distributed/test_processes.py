"""Two processes on this machine: as one they compute, tell what differs, end together, and go on from checkpoints.

`benchmarks/kill_processes.py` does more of it, with four.
"""

import signal

import numpy as np
import pytest
from launch import Run


@pytest.mark.exhaustive
def test_two_processes_compute_what_one_does():
    two, one, broken = Run("slurm", 2), Run("same", 1), Run("raise", 2)
    try:
        (status, _), (alone, _) = two.ended(), one.ended()
    finally:
        ends, _ = broken.ended()
    assert status == [0, 0] and alone == [0], (two.errors, one.errors)
    (first, *both, wrong), (second, *others, _) = ([x for x in said if isinstance(x, dict)] for said in two.said)
    assert first == {"index": 0} and second == {"index": 1}
    for line, other in zip(both, others, strict=True):
        assert line == other
        expected = next(mine for mine in one.said[0] if mine["how"] == line["how"])
        for name in ("losses", "validation", "loader"):
            assert np.allclose(line[name], expected[name], rtol=2e-5), name
        assert (line["devices"], expected["devices"]) == (4, 2)
        assert line["parts"] == expected["parts"] // (2 if line["how"] == "full" else 1)
    for name, says in {
        "values": "ValueError: `ps.layer_2.bias` of processes 0 and 1 differ: make it from the same key",
        "entries": "ValueError: the states of processes 0 and 1 have other entries; those of process 0 are ps.",
        "code": "ValueError: processes 0 and 1 have traced other programs from the objective",
        "shapes": "ValueError: processes 0 and 1 have parameters, states or batches of other shapes",
        "loader": "FitError: the data raised ValueError: the batches of processes 0 and 1 differ in shape",
        "odd": "FitError: the data raised ValueError: a batch of 6 samples cannot be divided equally among 4 ",
        "save": "ValueError: `rest` lies on the devices of several processes, and this one has a part of it: save",
        "files": "TypeError: several processes write checkpoints together by lux.training.OrbaxCheckpoints",
    }.items():
        assert wrong[name].startswith(says), wrong[name]
    assert wrong["broadcast"] is True and wrong["members"] < 1e-6
    assert ends == [1, 1]
    assert any("of one process" in line for line in broken.errors[1])
    assert broken.words(0) == [
        "lux.distributed: process 1 of 2 has raised an error, so that process 0 ends: start all of them again, with "
        "resume=True to go on from the last checkpoint"
    ]


@pytest.mark.exhaustive
def test_a_killed_run_ends_and_goes_on_to_the_same_numbers(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    whole, run = Run("run", 2, tmp_path / "whole"), Run("run", 2, tmp_path / "broken")
    try:
        run.until(50)
        run.send(1, signal.SIGKILL)
        status, seconds = run.ended(but=[1])
        assert status == [1] and seconds < 30
        (sentence,) = run.words(0)
        assert sentence.startswith("lux.distributed: process 1 of 2 is gone, so that process 0 ends: start all of them")
        again = Run("run", 2, tmp_path / "broken")
        assert again.ended()[0] == [0, 0], again.errors
    finally:
        status, _ = whole.ended()
    assert status == [0, 0]
    steps = [line["step"] for line in again.said[0] if "step" in line]
    assert steps[0] in (41, 51) and again.last() == whole.last()
    there = Run("read", 1, tmp_path / "broken")  # from four devices to two
    assert there.ended()[0] == [0], there.errors
    part = there.last().pop("part")
    assert part[0] == 3 and {**there.last(), "part": part} == {**again.last(), "part": part}
    assert 2 * part[1] == 256
