"""From the pipeline's step to a trained model: a TrainJob, two nodes with one process each, and the shared volume."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp import dsl
from safetensors.torch import load_file
from torch.testing import assert_close

from components.osft_training import osft_training
from osft import osft
from osft.config import TrainingConfig
from osft.kubeflow.placement import place_training
from osft.kubeflow.run import train_on_cluster
from osft.kubeflow.trainjob import TrainJobSettings, name_of_run
from osft.versions.base_model import resolve_base
from osft.workspace import Manifest, Workspace
from tests.kubeflow.api_server.containers import SHELL_IMAGE
from tests.kubeflow.api_server.examples import OVERRIDES
from tests.kubeflow.api_server.service import Service

pytestmark = pytest.mark.slow
RUN = "5f0c1e6e-7a57-4a2c-9a0e-0d4f9a3c2b11"
PARAMETERS = {
    "unfreeze_rank_ratio": 0.5,
    "learning_rate": 1e-2,
    "num_epochs": 2,
    "effective_batch_size": 4,
    "max_tokens_per_gpu": 64,
    "max_seq_len": 32,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "save_memory": False,
    "use_liger": False,
    "seed": 7,
}
TWO_NODES = TrainJobSettings(runtime="torch-distributed", image="example/trainer:1", nodes=2, gpus_per_node=0)


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points set logging up, for good; put back what was there, so that later tests see their log lines."""
    logger = logging.getLogger("osft")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))


@pytest.fixture
def workspace(workspace_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a model and tokenized rows."""
    monkeypatch.setenv("OSFT_WORKSPACE", str(workspace_folder))
    shutil.copytree(tiny_model, workspace_folder / "base")
    rows = [[3 + (7 * row + place) % 250 for place in range(8 + row % 3)] for row in range(12)]
    labels = [[-100, -100, *row[2:]] for row in rows]
    folder = workspace_folder / "runs" / RUN / "processed"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"input_ids": rows, "labels": labels, "row": range(len(rows))}), folder / "train.parquet")
    return Workspace(workspace_folder)


def run_step(workspace: Workspace, folder: Path, trainjob: str) -> dict[str, Any]:
    """Call the pipeline's step as a function; return its artifacts."""
    folder.mkdir(exist_ok=True)
    kinds = {
        "base": dsl.Artifact,
        "processed": dsl.Dataset,
        "tuned": dsl.Model,
        "metrics": dsl.Metrics,
        "loss_chart": dsl.HTML,
    }
    artifacts = {name: kind(uri=str(folder / name)) for name, kind in kinds.items()}
    Manifest(path=f"runs/{RUN}/processed", files=(), inputs={}).save(artifacts["processed"].path)
    base = resolve_base(workspace, run_id=RUN, model_base="pvc://base", model_origin="", promote_model_name="ours")
    base.save(artifacts["base"].path)
    osft_training.python_func(
        run_id=RUN,
        calibration="",
        target_patterns=[],
        remember=False,
        checkpoint_every_minutes=30.0,
        trainjob=trainjob,
        **PARAMETERS,
        **artifacts,
    )
    return artifacts


def training(workspace: Workspace, output: Path, **changes: Any) -> TrainingConfig:
    """Return the training of the step, with another place for what it leaves."""
    return TrainingConfig(
        model_path=str(workspace.root / "base"),
        data_path=str(workspace.root / "runs" / RUN / "processed" / "train.parquet"),
        use_processed_dataset=True,
        ckpt_output_dir=str(output),
        **{**PARAMETERS, **changes},
    )


def assert_same_model(folder: Path, other: Path, *, tolerance: float) -> None:
    ours, theirs = (load_file(one / "model.safetensors") for one in (folder, other))
    assert_close(ours, theirs, rtol=0, atol=tolerance)


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def losses(folder: Path) -> list[float]:
    return [orjson.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def test_the_step_trains_on_two_nodes_what_one_process_would_have_trained(
    service: Service,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    osft(**asdict(training(workspace, tmp_path / "alone")))

    artifacts = run_step(workspace, tmp_path / "artifacts", TWO_NODES.to_json())

    trained = workspace.resolve(artifacts["tuned"].metadata["path"])
    # Sums over processes are taken in another order.
    assert_close(losses(trained.parent), losses(tmp_path / "alone"), rtol=0, atol=1e-5)
    assert_same_model(trained, tmp_path / "alone" / "final", tolerance=1e-4)
    assert artifacts["metrics"].metadata["train_steps"] == 6
    assert {pod.plan.index for pod in service.cluster.pods} == {0, 1}
    service.wait_for(lambda: not service.cluster.store.has("trainjobs", "science", name_of_run(RUN)))


def test_a_pod_that_is_preempted_loses_nothing(
    service: Service, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    config = training(workspace, tmp_path / "alone", num_epochs=12)
    osft(**asdict(config))
    on_workspace = replace(config, ckpt_output_dir=str(workspace.root / "training"))
    settings = replace(TWO_NODES, nodes=1)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train_on_cluster, on_workspace, settings, run_id=RUN, workspace=workspace)
        service.wait_for(lambda: running.done() or count_lines(workspace.root / "training" / "metrics.jsonl") > 5, 200)
        service.pod().preempt()
        running.result(timeout=180)

    assert len(service.cluster.pods) == 2
    assert "the training goes on after step" in "".join(line.decode() for _, line in service.pod().logs[0].lines)
    assert losses(workspace.root / "training") == losses(tmp_path / "alone")
    assert_same_model(workspace.root / "training" / "final", tmp_path / "alone" / "final", tolerance=0.0)


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2", "2.3"])
def test_a_job_is_placed_and_sees_the_workspace_in_every_version_of_trainer(
    make_service: Callable[..., Service],
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:
    service = make_service(version)
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    script = f"test -f {workspace.root}/base/config.json && touch {workspace.root}/seen-by-$PET_NODE_RANK"
    chosen = {**asdict(TWO_NODES), "image": SHELL_IMAGE, "env": {"SCRIPT": script}}

    placement = place_training(chosen, run_id=RUN, workspace=workspace)
    config = training(workspace, workspace.root / "training")
    train_on_cluster(config, TrainJobSettings.from_json(placement.trainjob), run_id=RUN, workspace=workspace)

    assert sorted(path.name for path in workspace.root.glob("seen-by-*")) == ["seen-by-0", "seen-by-1"]
    assert placement.gpus == "0"
    assert OVERRIDES[version] in service.cluster.played[0].job["spec"]
