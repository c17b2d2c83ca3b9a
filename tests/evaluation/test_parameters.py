"""From the pipeline's plain parameters to a configuration, and what else its steps tell the evaluation."""

from dataclasses import replace
from pathlib import Path

import pytest

from osft.errors import ConfigError, MissingPathError, WorkspaceError
from osft.evaluation.parameters import (
    EvaluationParameters,
    data_summary,
    describe_inputs,
    make_config,
    sha256_of_path,
    training_settings,
)
from osft.versions.base_model import BaseModel
from osft.workspace import Manifest, Workspace, write_json

PARAMETERS = EvaluationParameters(
    tasks="gsm8k, arc_easy",
    target_tasks="",
    include_path="",
    num_fewshot="auto",
    limit=0,
    batch_size=0,
    apply_chat_template=True,
    generation={},
    probe="",
    backend="hf",
    max_forgetting=0.05,
    max_cumulative_forgetting=0.1,
    task_limits={"gsm8k": 0.02},
    min_target_gain=0.0,
    seed=42,
)

NO_VERSION = BaseModel(
    reference="pvc://origin",
    model="pvc://origin",
    model_name="m",
    parent=None,
    current=None,
    origin="pvc://origin",
    memory=None,
    earlier_holdouts={},
    seen_rows=(),
    held_out_rows=(),
    too_long_rows={},
    ancestor_measurements={},
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    write_json(tmp_path / "processed" / "processing.json", {"rows_holdout": 3})
    return tmp_path / "processed"


def test_empty_texts_zeros_and_auto_stand_for_what_the_library_does_unasked(
    workspace: Workspace, processed: Path
) -> None:
    config = make_config(PARAMETERS, workspace, processed=processed, ancestry=NO_VERSION)

    assert config.tasks == ("gsm8k", "arc_easy")
    assert config.target_tasks == ()
    assert (config.include_path, config.probe, config.num_fewshot, config.limit) == (None, None, None, None)
    assert config.batch_size == "auto"
    assert config.task_limits == {"gsm8k": 0.02}
    assert config.holdout == processed


def test_what_is_given_is_taken(workspace: Workspace, processed: Path) -> None:
    (workspace.root / "tasks").mkdir()
    (workspace.root / "probe.txt").touch()
    parameters = replace(
        PARAMETERS,
        include_path="pvc://tasks",
        probe="pvc://probe.txt",
        num_fewshot="5",
        limit=100,
        batch_size=8,
        generation={"max_gen_toks": 16},
    )

    config = make_config(parameters, workspace, processed=processed, ancestry=NO_VERSION)

    assert (config.include_path, config.probe) == (workspace.root / "tasks", workspace.root / "probe.txt")
    assert (config.num_fewshot, config.limit, config.batch_size) == (5, 100, 8)
    assert config.generation == {"max_gen_toks": 16}


def test_versions_before_the_base_are_found_on_the_workspace(workspace: Workspace, processed: Path) -> None:
    for folder in ("v0000/measurements", "v0001/measurements", "v0001/holdout"):
        (workspace.models / "m" / folder).mkdir(parents=True)
    ancestry = replace(
        NO_VERSION,
        parent="v0001",
        origin="pvc://origin/that/is/gone",
        earlier_holdouts={"holdout_v0001": "models/m/v0001/holdout"},
        ancestor_measurements={"v0000": "models/m/v0000/measurements", "v0001": "models/m/v0001/measurements"},
    )

    config = make_config(PARAMETERS, workspace, processed=processed, ancestry=ancestry)

    assert config.earlier_holdouts == {"holdout_v0001": workspace.models / "m" / "v0001" / "holdout"}
    assert list(config.ancestor_measurements.items()) == [
        (version, workspace.models / "m" / version / "measurements") for version in ("v0000", "v0001")
    ]
    assert (config.base_version, config.origin) == ("v0001", str(workspace.root / "origin/that/is/gone"))
    assert config.has_chain


def test_base_that_is_no_version_is_its_own_origin(workspace: Workspace, processed: Path) -> None:
    config = make_config(PARAMETERS, workspace, processed=processed, ancestry=NO_VERSION)

    assert (config.base_version, config.origin, config.has_chain) == (None, None, False)


def test_folder_of_a_version_outside_of_the_workspace_is_refused(workspace: Workspace, processed: Path) -> None:
    ancestry = replace(NO_VERSION, parent="v0001", earlier_holdouts={"holdout_v0001": "../elsewhere"})

    with pytest.raises(WorkspaceError, match=r"'\.\./elsewhere' leaves the workspace"):
        make_config(PARAMETERS, workspace, processed=processed, ancestry=ancestry)


def test_whole_numbers_that_kfp_made_doubles_are_whole_again(workspace: Workspace, processed: Path) -> None:
    parameters = replace(PARAMETERS, generation={"max_gen_toks": 16.0, "top_p": 0.5, "until": ["a", 2.0], "do": True})

    config = make_config(parameters, workspace, processed=processed, ancestry=NO_VERSION)

    assert repr(config.generation) == repr({"max_gen_toks": 16, "top_p": 0.5, "until": ["a", 2], "do": True})


def test_without_held_out_rows_nothing_is_asked_of_them(workspace: Workspace, processed: Path) -> None:
    write_json(processed / "processing.json", {"rows_holdout": 0})

    config = make_config(PARAMETERS, workspace, processed=processed, ancestry=NO_VERSION)

    assert config.holdout is None


def test_a_server_that_cannot_have_the_trained_model_is_refused(workspace: Workspace, processed: Path) -> None:
    with pytest.raises(ConfigError, match="eval_backend is 'openai', but no server has the model that this run trains"):
        make_config(replace(PARAMETERS, backend="openai"), workspace, processed=processed, ancestry=NO_VERSION)


@pytest.mark.parametrize("shots", ["five", "-1", "", "2.5"])
def test_a_number_of_shots_that_is_none_is_refused(workspace: Workspace, processed: Path, shots: str) -> None:
    with pytest.raises(ConfigError, match=f"eval_num_fewshot is '{shots}'. Give a whole number from 0, or auto"):
        make_config(replace(PARAMETERS, num_fewshot=shots), workspace, processed=processed, ancestry=NO_VERSION)


def test_the_inputs_change_with_the_content_of_tasks_and_probe(workspace: Workspace, processed: Path) -> None:
    tasks = workspace.root / "tasks"
    (tasks / "deeper").mkdir(parents=True)
    (tasks / "deeper" / "one.yaml").write_text("task: one")
    (workspace.root / "probe.txt").write_text("some text")
    parameters = replace(PARAMETERS, include_path="pvc://tasks", probe="pvc://probe.txt")
    config = make_config(parameters, workspace, processed=processed, ancestry=NO_VERSION)

    first = describe_inputs("base", config)
    (tasks / "deeper" / "one.yaml").write_text("task: two")
    other_task = describe_inputs("base", config)
    (workspace.root / "probe.txt").write_text("another text")
    other_probe = describe_inputs("base", config)

    assert first["base"] == "base"
    assert {name for name in first if first[name] != other_task[name]} == {"include_path_sha256"}
    assert {name for name in first if other_task[name] != other_probe[name]} == {"probe_sha256"}


def test_what_python_compiles_beside_a_task_changes_no_hash(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("def score(): ...")

    before = sha256_of_path(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "utils.cpython-312.pyc").write_bytes(b"compiled")

    assert sha256_of_path(tmp_path) == before


def test_a_renamed_file_changes_the_hash_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("task: one")

    before = sha256_of_path(tmp_path)
    (tmp_path / "one.yaml").rename(tmp_path / "two.yaml")

    assert sha256_of_path(tmp_path) != before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"nowhere: there is no such file or folder\. Check eval_include_path"):
        sha256_of_path(tmp_path / "nowhere")


def test_the_settings_of_a_training_are_its_parameters_without_hashes() -> None:
    inputs = {"model_path": "base", "learning_rate": 1e-3, "num_epochs": 2, "processed": "00", "protected_text": None}
    manifest = Manifest(path="runs/a/training", files=(), inputs=inputs)

    assert training_settings(manifest) == {"learning_rate": 1e-3, "num_epochs": 2}


def test_the_summary_of_the_data_follows_the_rows_from_source_to_tokens(tmp_path: Path) -> None:
    rows_of_validation = {"rows_in": 9, "rows_valid": 8, "rows_quarantined": 1, "rows_duplicated": 2}
    rows_of_processing = {"rows_train": 5, "rows_holdout": 2, "rows_dropped_too_long": 1, "rows_truncated": 0}
    write_json(tmp_path / "raw" / "source.json", {"uri": "x.jsonl", "etag": "1"})
    write_json(tmp_path / "valid" / "validation.json", {**rows_of_validation, "findings": []})
    write_json(tmp_path / "processed" / "processing.json", {**rows_of_processing, "train": {"tokens": 70}})

    summary = data_summary(tmp_path)

    assert summary == {"uri": "x.jsonl", **rows_of_validation, **rows_of_processing, "train_tokens": 70}
