"""A chain of runs: what the first begins with, what each adds, and what the next one protects."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from osft import osft
from osft.errors import ConfigError, MissingPathError, PreemptedError
from osft.subspace.inputs import InputPlace, covariances_at, input_places
from osft.subspace.memory.chain import _with_untrained, _without
from osft.subspace.memory.memory import SubspaceMemory
from osft.subspace.memory.merging import orthonormal
from osft.subspace.targets import find_targets
from osft.training.result import TrainingResult
from tests.checkpoints.interruption import sigterm_after_first_step

QUERIES = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Few tokens, so that their inputs span less than what can be protected."""
    return write_rows(tmp_path / "rows.jsonl", seed=0)


def write_rows(path: Path, *, seed: int, lengths: tuple[int, ...] = (6, 5, 6)) -> Path:
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        for length in lengths:
            ids = generator.integers(3, 200, length).tolist()
            file.write(orjson.dumps({"input_ids": ids, "labels": ids}, option=orjson.OPT_APPEND_NEWLINE))
    return path


@pytest.fixture
def train(tiny_model: Path, rows: Path, tmp_path: Path) -> Callable[..., TrainingResult]:
    """Return a function that trains into a folder of ``tmp_path`` with ``remember``."""

    def run(folder: str, **changes: Any) -> TrainingResult:
        return osft(
            **{
                "model_path": tiny_model, "data_path": rows, "ckpt_output_dir": tmp_path / folder,
                "use_processed_dataset": True, "unfreeze_rank_ratio": 0.25, "effective_batch_size": 3,
                "max_tokens_per_gpu": 64, "max_seq_len": 32, "learning_rate": 5e-3, "num_epochs": 3,
                "nproc_per_node": 1, "remember": True, **changes,
            }
        )  # fmt: skip

    return run


def inputs_of(folder: Path, rows: Path, name: str = QUERIES) -> Tensor:
    """Return the uncentred covariance of the inputs of one weight over ``rows``, of trace 1."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    places = input_places(model, find_targets(model))
    batches = [torch.tensor([orjson.loads(line)["input_ids"]]) for line in rows.read_bytes().splitlines()]
    covariance = covariances_at(model, {name: places[name]}, batches)[name].double()
    return covariance / covariance.trace()


def update_of(before: Path, after: Path, name: str = QUERIES) -> Tensor:
    old, new = (load_file(folder / "model.safetensors")[f"{name}.weight"].double() for folder in (before, after))
    return new - old


def remembered(folder: Path, name: str = QUERIES) -> Tensor:
    """Return the sum of covariances that a memory holds of one weight's inputs."""
    group = SubspaceMemory.load(folder).group_of(name)
    assert group is not None
    directions = orthonormal(group.directions)
    return (directions * group.eigenvalues.double()) @ directions.T


def test_a_run_remembers_the_inputs_of_its_data_as_the_trained_model_sees_them(
    train: Callable[..., TrainingResult], rows: Path, tmp_path: Path
) -> None:
    train("first")

    memory = SubspaceMemory.load(tmp_path / "first" / "memory")
    assert (memory.tasks, memory.tokens, len(memory.groups)) == (1, 17, 8)
    expected = inputs_of(tmp_path / "first" / "final", rows)
    # The rounding of bfloat16, and the last thousandth.
    assert (remembered(tmp_path / "first" / "memory") - expected).norm() < 0.01


def test_the_next_run_cannot_change_what_layers_answer_to_the_last_ones_data(
    train: Callable[..., TrainingResult], rows: Path, tmp_path: Path
) -> None:
    train("first")
    other_rows = write_rows(tmp_path / "other.jsonl", seed=1)
    final, memory = tmp_path / "first" / "final", tmp_path / "first" / "memory"

    with_memory = train("with", model_path=final, data_path=other_rows, subspace_memory=memory)
    without = train("without", model_path=final, data_path=other_rows)

    before = inputs_of(final, rows)
    moved = {}
    for result in (with_memory, without):
        assert result.final_checkpoint is not None
        update = update_of(final, result.final_checkpoint)
        moved[result] = float((update @ before @ update.T).trace() / update.square().sum())
    # Of the inputs' trace all but a thousandth is protected.
    assert moved[with_memory] < 1e-3
    assert moved[without] > 10 * moved[with_memory]


def test_each_run_of_a_chain_adds_its_task_to_the_memory_of_the_one_before(
    train: Callable[..., TrainingResult], rows: Path, tmp_path: Path
) -> None:
    train("first")
    other_rows = write_rows(tmp_path / "other.jsonl", seed=1)

    train("second", model_path=tmp_path / "first" / "final", data_path=other_rows,
          subspace_memory=tmp_path / "first" / "memory")  # fmt: skip

    memory = SubspaceMemory.load(tmp_path / "second" / "memory")
    assert (memory.tasks, memory.tokens) == (2, 34)
    expected = inputs_of(tmp_path / "first" / "final", rows) + inputs_of(tmp_path / "second" / "final", other_rows)
    assert (remembered(tmp_path / "second" / "memory") - expected).norm() < 0.02


def test_a_learning_rate_moves_each_weight_as_far_as_at_the_first_link(
    train: Callable[..., TrainingResult], tmp_path: Path
) -> None:
    first = train("first")
    memory = SubspaceMemory.load(tmp_path / "first/memory")
    larger = {name: 100 * value for name, value in memory.free_mean_squares.items()}
    replace(memory, free_mean_squares=larger).save(tmp_path / "larger")

    runs = {
        name: train(name, model_path=first.final_checkpoint, subspace_memory=folder)
        for name, folder in (("second", tmp_path / "first/memory"), ("moved", tmp_path / "larger"))
    }

    near, far = (update_of(first.final_checkpoint, run.final_checkpoint).norm() for run in runs.values())
    assert far > 4 * near
    assert SubspaceMemory.load(tmp_path / "second/memory").free_mean_squares == memory.free_mean_squares
    assert len(memory.free_mean_squares) == 14


@pytest.mark.parametrize("source", ["samples", "text"])
def test_a_first_link_protects_and_remembers_what_the_base_must_keep(
    train: Callable[..., TrainingResult], tiny_model: Path, tmp_path: Path, source: str
) -> None:
    text = write_rows(tmp_path / "text.jsonl", seed=2)
    options = {"calibration": text} if source == "text" else {"base_memory": "samples"}

    train("first", **options)

    memory = SubspaceMemory.load(tmp_path / "first" / "memory")
    assert memory.tasks == 2
    assert not (tmp_path / "first" / "base_memory").exists()
    assert (memory.tokens == 2 * 17) == (source == "text")
    if source == "text":
        base = inputs_of(tiny_model, text)
        update = update_of(tiny_model, tmp_path / "first" / "final")
        assert (update @ base @ update.T).trace() < 1e-3 * update.square().sum()


def test_a_run_that_remembers_from_weights_trains_as_one_that_does_not_remember(
    train: Callable[..., TrainingResult], tmp_path: Path
) -> None:
    remembering, plain = train("remembering"), train("plain", remember=False)

    files = [run.final_checkpoint / "model.safetensors" for run in (remembering, plain) if run.final_checkpoint]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "plain" / "memory").exists()


def test_what_is_known_of_weights_that_a_run_does_not_train_stays_in_the_memory(
    train: Callable[..., TrainingResult], tmp_path: Path
) -> None:
    train("first")
    first = SubspaceMemory.load(tmp_path / "first" / "memory")

    train("second", model_path=tmp_path / "first" / "final", subspace_memory=tmp_path / "first" / "memory",
          target_patterns=["q_proj"])  # fmt: skip

    second = SubspaceMemory.load(tmp_path / "second" / "memory")
    assert {group.targets for group in second.groups} == {group.targets for group in first.groups}
    for group in second.groups:
        before = first.group_of(group.targets[0])
        assert before is not None
        # Keys and values see what queries do, though they are not trained.
        is_measured = any(target.endswith("q_proj") for target in group.targets)
        assert len(group.needed) == len(before.needed) + is_measured
        assert torch.equal(group.directions, before.directions) != is_measured


def test_weights_of_one_input_that_are_measured_apart_take_what_was_known_with_them(
    memory: SubspaceMemory, covariance: Callable[..., Tensor]
) -> None:
    places = {name: InputPlace(modules=(name,), inputs=12) for name in ("a.q", "a.k")}
    before = memory.group_of("a.k")

    assert _with_untrained(("a.q",), before, {"a.q": places["a.q"]}) == ("a.q", "a.k")
    assert _with_untrained(("a.q",), before, places) == ("a.q",)
    assert [group.targets for group in _without(memory.groups, {"a.q", "a.o"})] == [("a.k",)]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_run_that_goes_on_reads_what_the_base_must_keep_or_measures_it_again_and_remembers_the_same(
    train: Callable[..., TrainingResult],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    is_lost: bool,
) -> None:
    caplog.set_level(logging.INFO, "osft")
    text = write_rows(tmp_path / "text.jsonl", seed=2)
    train("whole", calibration=text)
    with sigterm_after_first_step(), pytest.raises(PreemptedError):
        train("stopped", calibration=text)
    kept = tmp_path / "stopped" / "base_memory" / "memory.safetensors"
    assert kept.is_file()
    if is_lost:
        kept.unlink()
    caplog.clear()

    train("stopped", calibration=text)

    assert "the training goes on after step" in caplog.text
    assert ("memory of 1 tasks" in caplog.text) == is_lost
    assert ("Measuring the base model again" in caplog.text) == is_lost
    files = [tmp_path / folder / "memory" / "memory.safetensors" for folder in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_memory_that_does_not_fit_its_room_is_warned_of(
    train: Callable[..., TrainingResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train("first")

    train("second", subspace_memory=tmp_path / "first" / "memory", unfreeze_rank_ratio=0.9)

    assert "the memory of 1 tasks does not fit into" in caplog.text


def test_a_memory_of_another_model_is_refused(
    train: Callable[..., TrainingResult], memory: SubspaceMemory, tmp_path: Path
) -> None:
    memory.save(tmp_path / "other")

    with pytest.raises(ConfigError, match=r"other: remembers none of the weights to train, such as model\.layers\.0"):
        train("out", subspace_memory=tmp_path / "other")


def test_a_folder_that_is_no_memory_is_refused_before_anything_is_loaded(
    train: Callable[..., TrainingResult], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(MissingPathError, match="empty: holds no subspace memory"):
        train("out", subspace_memory=tmp_path / "empty")
    with pytest.raises(MissingPathError, match="calibration '.*nowhere' does not exist"):
        train("out", calibration=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_memory": "nothing"}, "base_memory='nothing' is not one of weights, samples"),
        ({"protect_inputs_of": "text"}, "protect_inputs_of is for a run without a memory"),
        ({"calibration": "text", "base_memory": "samples"}, "calibration and base_memory='samples' exclude"),
        ({"calibration": "text", "remember": False}, "calibration is for remember=True"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    train: Callable[..., TrainingResult], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train("out", **changes)
