"""A run that is interrupted and called again, on a real small model in this process."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from osft import osft
from osft.checkpoints.folder import Marker
from osft.errors import PreemptedError
from osft.training.metrics import StepMetrics, read_metrics
from tests.checkpoints.interruption import sigterm_after_first_step

Call = Callable[..., dict[str, Any]]


def outcome(metrics: StepMetrics) -> tuple[float, ...]:
    """Return what of a step does not depend on the clock."""
    return metrics.step, metrics.epoch, metrics.loss, metrics.learning_rate, metrics.gradient_norm


def interrupt(parameters: dict[str, Any]) -> None:
    """Call ``osft()`` and stop it after two steps."""
    with (
        sigterm_after_first_step(),
        pytest.raises(PreemptedError, match=r"stopped by SIGTERM after step \d of 8; .* goes on from there"),
    ):
        osft(**parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unfreeze_rank_ratio": 0.25, "lr_scheduler": "linear", "warmup_steps": 3, "weight_decay": 0.1},
        {"unfreeze_rank_ratio": 0.0},
        {"save_memory": True},
        {"train_other_parameters": True},
        {"rank_allocation": "adaptive"},
        {"rank_allocation": "adaptive", "unfreeze_rank_ratio": 0.1},
        {"parametrization": "factored"},
        {"checkpoint_at_epoch": True},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
def test_a_run_that_was_interrupted_three_times_ends_bit_for_bit_as_one_that_was_not(
    call: Call, tmp_path: Path, changes: dict[str, Any]
) -> None:
    parameters = call("interrupted", **changes)
    whole = osft(**call("whole", **changes))

    for _ in range(3):
        interrupt(parameters)
    result = osft(**parameters)

    for folder in (*(["epoch_1", "epoch_4"] if "checkpoint_at_epoch" in changes else []), "final"):
        weights = [tmp_path / run / folder / "model.safetensors" for run in ("whole", "interrupted")]
        assert weights[0].read_bytes() == weights[1].read_bytes(), folder
    steps = [[outcome(step) for step in read_metrics(run.metrics_file)] for run in (whole, result)]
    assert steps[0] == steps[1]
    assert (result.steps, result.first_loss, result.final_loss) == (8, whole.first_loss, whole.final_loss)
    assert not (tmp_path / "interrupted" / "checkpoints").exists()


def test_a_run_on_raw_data_goes_on_though_it_prepares_them_again(call: Call, messages_file: Path) -> None:
    parameters = call("out", data_path=str(messages_file), use_processed_dataset=False)
    interrupt(parameters)

    result = osft(**parameters, resume="must")

    assert result.steps == 8


def test_the_wall_time_of_all_attempts_adds_up(call: Call, tmp_path: Path) -> None:
    interrupt(call("out"))
    folder = tmp_path / "out" / "checkpoints" / "step_2"
    marker = Marker.load(folder)
    assert marker is not None
    replace(marker, details={**marker.details, "seconds": marker.details["seconds"] + 1000}).save(folder)

    result = osft(**call("out"))

    assert 1000 < result.seconds < 1100


def test_after_a_stop_without_a_save_before_the_error_says_from_where_the_same_call_goes_on(
    call: Call, tmp_path: Path
) -> None:
    with (
        sigterm_after_first_step(),
        pytest.raises(PreemptedError, match="step 2 of 8; the same call goes on from there"),
    ):
        osft(**call("out"))

    assert sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir()) == ["bases", "step_2"]
    assert not (tmp_path / "out" / "training.json").exists()


def test_a_finished_run_that_is_called_again_returns_its_result_at_once(call: Call, tmp_path: Path) -> None:
    first = osft(**call("out"))
    before = (tmp_path / "out" / "metrics.jsonl").stat()

    again = [osft(**call("out", resume=resume)) for resume in ("auto", "must")]

    assert again == [first, first]
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == before.st_mtime_ns


def test_never_trains_anew_and_removes_what_was_there(call: Call, tmp_path: Path) -> None:
    interrupt(call("out"))

    result = osft(**call("out", resume="never", learning_rate=1e-3))

    assert [step.step for step in read_metrics(result.metrics_file)] == list(range(1, 9))
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused_with_every_difference_and_nothing_is_lost(
    call: Call, tmp_path: Path, finished: bool
) -> None:
    if finished:
        osft(**call("out"))
    else:
        interrupt(call("out"))
    what = "the result of a finished training" if finished else "a checkpoint"

    for resume in ("auto", "must"):
        with pytest.raises(
            ValueError,
            match=rf"{what}, is of another configuration: .*learning_rate was 0.005, is 0.001.*resume='never'",
        ):
            osft(**call("out", resume=resume, learning_rate=1e-3, seed=3))

    result = osft(**call("out", resume="must"))
    assert result.steps == 8


def test_must_refuses_to_start_where_nothing_is(call: Call, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="there is no whole checkpoint to go on from, which resume='must' asks for"):
        osft(**call("out", resume="must"))


def test_checkpoints_come_every_n_steps_and_the_newest_stay(call: Call, tmp_path: Path) -> None:
    parameters = call("out", checkpoint_every_steps=1, keep_checkpoints=3)
    interrupt(parameters)
    interrupt(parameters)

    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())

    assert kept == ["bases", "step_2", "step_3", "step_4"]


def test_checkpoints_come_after_minutes(call: Call, tmp_path: Path) -> None:
    # A ten-thousandth of a minute: every step takes longer.
    interrupt(call("out", checkpoint_every_minutes=1e-4, keep_checkpoints=9))

    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())

    assert kept == ["bases", "step_1", "step_2"]


DAMAGES = {
    "flipped bytes": (lambda folder: _flip(folder / "__0_0.distcp"), "__0_0.distcp has other bytes than were written"),
    "flipped metadata": (lambda folder: _flip(folder / ".metadata"), ".metadata has other bytes than were written"),
    "a missing rank": (lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp cannot be read"),
    "a cut file": (lambda folder: os.truncate(folder / "__0_0.distcp", 10), "__0_0.distcp has 10 bytes, not"),
    "a flipped bit in the marker": (
        lambda folder: _flip(folder / "complete.json"),
        "complete.json is missing or damaged",
    ),
    "no marker": (lambda folder: (folder / "complete.json").unlink(), "complete.json is missing or damaged"),
    "a cut marker": (lambda folder: os.truncate(folder / "complete.json", 10), "complete.json is missing or damaged"),
}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    parameters = call("out", checkpoint_every_steps=1)
    interrupt(parameters)
    make, words = DAMAGES[damage]
    make(tmp_path / "out" / "checkpoints" / "step_2")

    with listening_to(caplog):
        result = osft(**parameters)

    assert any("step_2" in line and words in line for line in caplog.messages), caplog.messages
    assert any("goes on after step 1" in line for line in caplog.messages)
    assert result.steps == 8


@pytest.mark.parametrize("damaged", ["step_2", "bases"])
def test_without_a_whole_checkpoint_auto_starts_anew_with_a_warning_and_must_refuses(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    interrupt(call("out"))
    _flip(tmp_path / "out" / "checkpoints" / damaged / "__0_0.distcp")

    with pytest.raises(RuntimeError, match="there is no whole checkpoint to go on from"):
        osft(**call("out", resume="must"))
    with listening_to(caplog):
        result = osft(**call("out"))

    assert any(f"{damaged} is damaged" in line for line in caplog.messages)
    assert any("no checkpoint is whole; the training starts anew" in line for line in caplog.messages)
    assert [step.step for step in read_metrics(result.metrics_file)] == list(range(1, 9))


@contextmanager
def listening_to(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let ``caplog`` hear the library's log, which does not go through the root logger once it is set up."""
    logger = logging.getLogger("osft")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
