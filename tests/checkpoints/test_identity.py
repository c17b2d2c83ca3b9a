"""What must be equal to go on, and how a difference reads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osft.checkpoints.identity import differences, run_identity
from osft.config import TrainingConfig

Call = Callable[..., dict[str, Any]]


def identity(call: Call, **changes: Any) -> dict[str, Any]:
    parameters = call("out", **changes)
    return run_identity(TrainingConfig(**parameters), Path(parameters["data_path"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"ckpt_output_dir": "elsewhere"},
        {"checkpoint_every_steps": 7, "checkpoint_every_minutes": 1.0, "keep_checkpoints": 9, "resume": "must"},
        {"nproc_per_node": 8, "nnodes": 2, "node_rank": 1, "rdzv_id": 5, "rdzv_endpoint": "node0:1234"},
        {"decomposition_cache": "cache", "data_output_dir": "data", "step_timeout_minutes": 5.0},
    ],
)
def test_where_things_lie_and_how_the_run_is_carried_out_may_change(call: Call, changes: dict[str, Any]) -> None:
    assert differences(identity(call), identity(call, **changes)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 2e-5}, ["learning_rate was 1e-05, is 2e-05"]),
        ({"seed": 1, "lr_scheduler": "linear"}, ["seed was 42, is 1", "lr_scheduler was 'cosine', is 'linear'"]),
        ({"target_patterns": ("q_proj",)}, ["target_patterns was None, is ['q_proj']"]),
    ],
)
def test_each_parameter_that_changes_the_result_is_named_with_both_values(
    call: Call, changes: dict[str, Any], words: list[str]
) -> None:
    saved = identity(call, learning_rate=1e-5)

    found = differences(saved, identity(call, **{"learning_rate": 1e-5, **changes}))

    assert sorted(found) == sorted(words)


def test_a_parameter_that_a_version_before_did_not_have_is_a_difference(call: Call) -> None:
    saved = identity(call)
    del saved["weight_decay"]

    assert differences(saved, identity(call)) == ["weight_decay was None, is 0.0"]


def test_the_model_and_the_data_count_by_their_bytes_and_not_by_their_place(call: Call, tmp_path: Path) -> None:
    parameters = call("out")
    model = shutil.copytree(parameters["model_path"], tmp_path / "model")
    data = shutil.copy(parameters["data_path"], tmp_path / "data.jsonl")

    assert differences(identity(call), identity(call, model_path=str(model), data_path=str(data))) == []

    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with data.open("a") as file:
        file.write("\n")
    found = differences(identity(call), identity(call, model_path=str(model), data_path=str(data)))
    assert found == ["the base model has other contents", "the training data has other contents"]


def test_the_text_of_protect_inputs_of_counts_by_its_bytes(call: Call, tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("one", "same", "other")]
    for text in texts:
        text.write_text("other" if text.name == "other" else "words")
    one, same, other = (identity(call, protect_inputs_of=str(text)) for text in texts)

    assert differences(one, same) == []
    assert differences(one, other) == ["the text of protect_inputs_of has other contents"]


def test_a_text_may_be_given_as_a_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_text("words")

    one, same = (identity(call, protect_inputs_of=str(path)) for path in (tmp_path, tmp_path / "valid.jsonl"))

    assert differences(one, same) == []


def test_a_run_without_a_memory_has_the_identity_that_it_had_before_there_were_any(call: Call) -> None:
    plain = identity(call)

    assert not any(word in name for name in plain for word in ("memory of", "remember", "base_memory", "calibration"))


def test_what_a_memory_is_made_from_counts_by_its_bytes_and_not_by_its_place(call: Call, tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.safetensors").write_text("other" if name == "other" else "memory")
        (tmp_path / f"{name}.jsonl").write_text("other" if name == "other" else "text")

    one, same, other = (
        identity(call, remember=True, subspace_memory=str(tmp_path / name), calibration=str(tmp_path / f"{name}.jsonl"))
        for name in ("one", "same", "other")
    )

    assert differences(one, same) == []
    assert sorted(differences(one, other)) == [
        "the memory of subspace_memory has other contents",
        "the text of calibration has other contents",
    ]


def test_to_remember_is_a_difference_and_so_is_what_the_memory_begins_with(call: Call) -> None:
    plain, weights = identity(call), identity(call, remember=True)

    assert "remember was None, is True" in differences(plain, weights)
    assert differences(weights, identity(call, remember=True, base_memory="samples")) == [
        "base_memory was 'weights', is 'samples'"
    ]


def test_a_model_that_is_nowhere_is_a_missing_path(call: Call) -> None:
    with pytest.raises(FileNotFoundError, match="model_path 'nobody/no-model' is neither a folder nor a reachable"):
        identity(call, model_path="nobody/no-model")
