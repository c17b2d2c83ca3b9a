"""The sweep through KFP's local runner, on a real small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.comparison.compared_run import read_run
from osft.workspace import Workspace
from pipelines.ratio_sweep import ratio_sweep
from run_local import run
from tests.conftest import write_messages

pytestmark = pytest.mark.usefixtures("forked_steps")


@pytest.mark.slow
def test_a_sweep_measures_the_base_once_and_promotes_the_model_of_the_chosen_ratio(
    tmp_path: Path, tiny_model: Path, write_parity_task: Callable[[Path, str], None]
) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "tasks").mkdir()
    write_parity_task(tmp_path / "tasks", "parity")
    write_messages(tmp_path / "new.jsonl")
    arguments: dict[str, Any] = {
        "data_uri": "pvc://new.jsonl",
        "data_holdout_fraction": 0.25,
        "model_base": "promoted://adder",
        "model_origin": str(tiny_model),
        "sweep_ratios": [0.5, 0.25],
        "train_effective_batch_size": 4,
        "train_max_tokens_per_gpu": 512,
        "train_max_seq_len": 128,
        "train_num_epochs": 1,
        "train_target_patterns": ["mlp"],
        "eval_tasks": "parity",
        "eval_include_path": "pvc://tasks",
        "eval_max_forgetting": 1.0,
        "eval_max_cumulative_forgetting": 1.0,
        "promote_model_name": "adder",
    }

    sweep = run(arguments, workspace, ratio_sweep)

    runs = [sweep.parent / f"{sweep.name}-ratio-{ratio}" for ratio in (0.25, 0.5)]
    assert sorted(path.name for path in sweep.parent.iterdir()) == [sweep.name, *(path.name for path in runs)]
    assert all((path / "baseline/baseline.json").samefile(sweep / "baseline/baseline.json") for path in runs)
    choice = orjson.loads((sweep / "choice" / "choice.json").read_bytes())
    chosen = sweep.parent / f"{sweep.name}-ratio-{choice['ratio']}"
    lineage = orjson.loads((workspace.models / "adder" / "v0001" / "lineage.json").read_bytes())
    assert lineage["run_id"] == sweep.name
    assert lineage["parameters"]["training"]["unfreeze_rank_ratio"] == choice["ratio"]
    published = workspace.models / "adder" / "v0001" / "model.safetensors"
    assert published.read_bytes() == (chosen / "training" / "final" / "model.safetensors").read_bytes()
    # A model takes its room once, in the folder of its ratio's run and in that of the sweep.
    assert (sweep / "training" / "final" / "model.safetensors").samefile(chosen / "training/final/model.safetensors")
    compared = [read_run(workspace, path.name) for path in runs]
    assert [each.parameters["train_unfreeze_rank_ratio"] for each in compared] == [0.25, 0.5]
    assert [each.missing_step for each in compared] == [None, None]
