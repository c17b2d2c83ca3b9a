"""The manifest of a TrainJob, held against the models that Kubeflow Trainer publishes for each of its versions."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.errors import ConfigError
from osft.kubeflow.trainjob import (
    FINGERPRINT_ANNOTATION,
    MAX_NAME_LENGTH,
    TrainJob,
    TrainJobSettings,
    make_manifest,
    name_of_run,
)
from osft.kubeflow.versions import OverridesField

MODELS = Path(__file__).parents[2] / "build" / "trainer-api"
FIELDS = {
    "2.0.1": OverridesField.POD_SPEC_OVERRIDES,
    "2.1.0": OverridesField.POD_TEMPLATE_OVERRIDES,
    "2.2.1": OverridesField.RUNTIME_PATCHES,
    "2.3.0": OverridesField.RUNTIME_PATCHES,
}
# The versions are packages of one name: each is read by a process of its own. A model keeps only the fields that it
# knows, as an API server does, so what comes back is what Trainer of that version would get.
ROUND_TRIP = """
import sys
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
print(TrainerV1alpha1TrainJob.from_json(sys.stdin.read()).to_json())
"""
RUN = "5f0c1e6e-7a57-4a2c-9a0e-0d4f9a3c2b11"


def make_job(**changes: Any) -> TrainJob:
    settings = TrainJobSettings(
        **{
            "runtime": "torch-distributed",
            "image": "quay.io/a/trainer:1",
            "nodes": 2,
            "gpus_per_node": 4,
            "cpu": "16",
            "memory": "128Gi",
            "queue": "gpus",
            "labels": {"team": "science"},
            "node_selector": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
            "tolerations": ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
            "env": {"NCCL_DEBUG": "INFO"},
            "hub_secret": "osft-hugging-face",
            **changes,
        }
    )
    return TrainJob(
        run_id=RUN,
        settings=settings,
        order_file=Path("/workspace/runs/r/trainjob/order.json"),
        order_sha256="0" * 64,
        workspace=Path("/workspace"),
        inherited_env={"OSFT_WORKSPACE": "/workspace", "NCCL_DEBUG": "WARN"},
    )


def as_trainer_reads_it(manifest: dict[str, Any], version: str) -> dict[str, Any]:
    """Return what is left of a manifest after the models of a version."""
    folder = MODELS / version
    assert folder.is_dir(), f"{folder} is missing: make test installs it"
    read = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP],
        input=orjson.dumps(manifest),
        capture_output=True,
        check=False,
        env={"PYTHONPATH": str(folder)},
    )
    assert read.returncode == 0, read.stderr.decode()
    result: dict[str, Any] = orjson.loads(read.stdout)
    return result


def pod_spec(manifest: dict[str, Any], field: OverridesField) -> dict[str, Any]:
    (entry,) = manifest["spec"][field.value]
    if field is OverridesField.POD_SPEC_OVERRIDES:
        return {name: value for name, value in entry.items() if name != "targetJobs"}
    if field is OverridesField.POD_TEMPLATE_OVERRIDES:
        return entry["spec"]
    (job,) = entry["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("version", "field"), FIELDS.items())
def test_each_version_of_trainer_reads_the_whole_manifest(version: str, field: OverridesField) -> None:
    manifest = make_manifest(make_job(), "ClusterTrainingRuntime", field)

    read = as_trainer_reads_it(manifest, version)

    assert read == manifest


def test_a_field_of_another_version_is_lost_without_a_word() -> None:
    manifest = make_manifest(make_job(), "ClusterTrainingRuntime", OverridesField.RUNTIME_PATCHES)

    read = as_trainer_reads_it(manifest, "2.1.0")

    assert set(manifest["spec"]) - set(read["spec"]) == {"runtimePatches"}


@pytest.mark.parametrize("field", OverridesField)
def test_every_pod_gets_the_workspace_shared_memory_and_its_place(field: OverridesField) -> None:
    manifest = make_manifest(make_job(), "ClusterTrainingRuntime", field)

    spec = pod_spec(manifest, field)

    (container,) = spec["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert container["name"] == "node"
    assert set(paths.values()) == {"/workspace", "/dev/shm"}  # noqa: S108
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "emptyDir" not in volume]
    assert claims == ["osft-workspace"]
    assert {"medium": "Memory"} in [volume.get("emptyDir") for volume in volumes.values()]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_nodes_processes_resources_and_environment_are_those_of_the_settings() -> None:
    trainer = make_manifest(make_job(), "TrainingRuntime", OverridesField.RUNTIME_PATCHES)["spec"]["trainer"]

    amounts = {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "4"}
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == ("quay.io/a/trainer:1", 2, 4)
    assert trainer["resourcesPerNode"] == {"requests": amounts, "limits": amounts}
    assert trainer["command"] == ["python", "-m", "osft.kubeflow.node", "/workspace/runs/r/trainjob/order.json", "2"]
    assert trainer["env"] == [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "OSFT_WORKSPACE", "value": "/workspace"},
        {
            "name": "HF_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "osft-hugging-face", "key": "HF_TOKEN", "optional": True}},
        },
    ]


def test_without_gpus_a_node_has_one_process_and_asks_for_none() -> None:
    job = make_job(gpus_per_node=0, hub_secret="", queue="", labels={}, node_selector={}, tolerations=())

    manifest = make_manifest(job, "ClusterTrainingRuntime", OverridesField.POD_TEMPLATE_OVERRIDES)

    assert manifest["spec"]["trainer"]["numProcPerNode"] == 1
    assert "nvidia.com/gpu" not in manifest["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert set(pod_spec(manifest, OverridesField.POD_TEMPLATE_OVERRIDES)) == {"volumes", "containers"}
    assert "HF_TOKEN" not in [variable["name"] for variable in manifest["spec"]["trainer"]["env"]]
    assert "kueue.x-k8s.io/queue-name" not in manifest["metadata"]["labels"]


def test_the_queue_is_the_label_that_kueue_reads() -> None:
    manifest = make_manifest(make_job(), "ClusterTrainingRuntime", OverridesField.RUNTIME_PATCHES)

    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert manifest["metadata"]["labels"]["team"] == "science"
    assert manifest["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": "torch-distributed"
    }  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"nodes": 3}, {"image": "quay.io/a/trainer:2"}, {"queue": ""}, {"memory": "64Gi"}, {"env": {}}]
)
def test_another_setting_makes_another_fingerprint(change: dict[str, Any]) -> None:
    first, same, other = (
        make_manifest(job, "ClusterTrainingRuntime", OverridesField.RUNTIME_PATCHES)["metadata"]["annotations"]
        for job in (make_job(), make_job(), make_job(**change))
    )

    assert first == same
    assert first[FINGERPRINT_ANNOTATION] != other[FINGERPRINT_ANNOTATION]


def test_a_job_that_was_created_before_trainer_was_updated_is_the_same_one() -> None:
    before = make_manifest(make_job(), "ClusterTrainingRuntime", OverridesField.POD_TEMPLATE_OVERRIDES)
    after = make_manifest(make_job(deadline_hours=8.0), "TrainingRuntime", OverridesField.RUNTIME_PATCHES)

    assert before["metadata"]["annotations"] == after["metadata"]["annotations"]


def test_another_order_makes_another_fingerprint() -> None:
    job = make_job()

    first, other = (
        make_manifest(one, "ClusterTrainingRuntime", OverridesField.RUNTIME_PATCHES)["metadata"]["annotations"]
        for one in (job, replace(job, order_sha256="1" * 64))
    )

    assert first[FINGERPRINT_ANNOTATION] != other[FINGERPRINT_ANNOTATION]


def test_settings_come_back_from_json_as_they_were() -> None:
    settings = make_job().settings

    assert TrainJobSettings.from_json(settings.to_json()) == settings


def test_a_run_of_kfp_gives_its_id_to_its_job() -> None:
    assert name_of_run(RUN) == f"osft-{RUN}"


@pytest.mark.parametrize(
    "run_id", ["Nightly_Run.1", "x" * 128, "9", "run-", "osft-continual-learning-2026-11-22-12-00-00-123456", "a--b"]
)
def test_any_run_id_gives_a_name_that_kubernetes_takes_also_for_the_pods(run_id: str) -> None:
    name = name_of_run(run_id)

    assert name == name_of_run(run_id)
    assert name.replace("-", "a").isalnum()
    assert name.islower()
    assert name[0].isalpha()
    assert name[-1] != "-"
    assert len(name) <= MAX_NAME_LENGTH
    assert len(f"{name}-node-0-9999-abcde") <= 63


def test_run_ids_that_look_alike_as_names_give_different_jobs() -> None:
    ids = ["Run.1", "run-1", "run_1", "x" * 100, "x" * 101]

    assert len({name_of_run(run_id) for run_id in ids}) == len(ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": ""}, "train_runtime is empty"),
        ({"image": ""}, "train_image is empty"),
        ({"nodes": 0}, "train_num_nodes=0 is not a whole number of at least 1"),
        ({"nodes": 1.5}, "train_num_nodes=1.5 is not a whole number"),
        ({"gpus_per_node": -1}, "train_gpus_per_node=-1 is not a whole number of at least 0"),
        ({"cpu": "many"}, "train_cpu='many' is not a quantity of Kubernetes"),
        ({"memory": "64 GB"}, "train_memory='64 GB' is not a quantity of Kubernetes"),
        ({"deadline_hours": -1.0}, "train_deadline_hours=-1.0 is not 0 or more"),
        ({"deadline_hours": float("nan")}, "train_deadline_hours=nan is not 0 or more"),
        ({"env": {"A": "secret", "B": 1}}, r"train_env has values that are no texts: B \(int\). Quote them"),
        ({"labels": ["a"]}, "train_labels is of type list, not a JSON object from names to texts"),
        ({"tolerations": ("gpu",)}, r"train_tolerations=\['gpu'\] is not a list of JSON objects"),
    ],
)
def test_a_setting_that_no_job_could_have_is_refused_by_its_parameter(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_job(**change)
