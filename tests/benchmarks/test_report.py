"""The benchmark's results say what they must."""

from pathlib import Path

import orjson

from benchmarks.report import Origin, median_ratio, write_results
from benchmarks.timing import StepTime

ORIGIN = Origin(machine="a machine", command="a command")


def step_time(seconds: float) -> StepTime:
    return StepTime(
        micro_batches=1, loss=1.0, accumulate_seconds=seconds, update_seconds=0.0, prepare_seconds=0.0, state_bytes=0,
        peak_bytes=None,
    )  # fmt: skip


def test_a_ratio_is_taken_within_each_round() -> None:
    numerators = [step_time(1.0), step_time(10.0), step_time(3.0)]
    denominators = [step_time(2.0), step_time(20.0), step_time(1.0)]

    assert median_ratio(numerators, denominators) == 0.5


def test_what_does_not_fit_has_not_met_its_goal() -> None:
    assert ORIGIN.result("a metric", None, 0.5).met is False


def test_results_of_another_machine_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "engine.json"
    other = Origin(machine="another machine", command="a command")
    write_results(path, [ORIGIN.result("old", 2.0)])
    write_results(path, [other.result("of another", 3.0)])

    write_results(path, [ORIGIN.result("new", 0.5, 1.0)])

    assert orjson.loads(path.read_bytes()) == [
        {"metric": "of another", "value": 3.0, "goal": None, "met": None, "machine": "another machine",
         "command": "a command"},
        {"metric": "new", "value": 0.5, "goal": 1.0, "met": True, "machine": "a machine", "command": "a command"},
    ]  # fmt: skip
