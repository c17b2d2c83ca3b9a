"""The compiled pipelines: what the cluster reads."""

import copy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from compile import Deployment, compile_pipeline, containers, find_problems, is_pinned, kubernetes_executors
from osft.config import TrainingConfig
from osft.errors import ConfigError
from osft.kubeflow.trainjob import TrainJobSettings
from pipelines.catalogue import PIPELINES

ROOT = Path(__file__).parent.parent
NAME = "osft-continual-learning"
SWEEP = "osft-ratio-sweep"
STEPS = [
    "base-resolution", "dataset-download", "message-validation", "message-processing", "baseline-evaluation",
    "training-placement", "osft-training", "forgetting-evaluation", "model-promotion", "model-registration",
    "workspace-pruning",
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    target = tmp_path_factory.mktemp("dist") / f"{NAME}.yaml"
    compile_pipeline(PIPELINES[NAME], target, Deployment())
    specification, platform = yaml.safe_load_all(target.read_text())
    return specification, platform


def tasks_for_new_rows(specification: dict[str, Any]) -> dict[str, Any]:
    """Return the steps that only a run with new rows has."""
    tasks: dict[str, Any] = specification["components"]["comp-condition-1"]["dag"]["tasks"]
    return tasks


def test_the_command_writes_a_file_a_pipeline_and_lists_them(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "compile.py")]

    written = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=True)
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True)

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NAME}.yaml", f"{SWEEP}.yaml"]
    assert f"wrote {tmp_path}" in written.stdout
    assert listed.stdout.startswith(f"{NAME}.yaml")


def test_a_bad_option_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "compile.py"), "--output", str(tmp_path), "--image", "a/b:latest"]

    finished = subprocess.run(command, capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert finished.stderr == "compile.py: --image 'a/b:latest' needs a tag other than latest, or a digest.\n"
    assert not list(tmp_path.iterdir())


def test_two_compilations_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        compile_pipeline(PIPELINES[NAME], tmp_path / name, Deployment())

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_the_file_has_the_eleven_steps_and_begins_with_its_parameters(compiled: Any, tmp_path: Path) -> None:
    specification, _ = compiled
    compile_pipeline(PIPELINES[NAME], tmp_path / "x.yaml", Deployment())

    assert specification["pipelineInfo"]["name"] == "osft-continual-learning"
    assert sorted(name for name, _ in containers(specification)) == sorted(f"exec-{step}" for step in STEPS)
    assert (tmp_path / "x.yaml").read_text().startswith("# PIPELINE DEFINITION\n# Name: osft-continual-learning\n")


def test_a_run_without_new_rows_ends_after_the_validation(compiled: Any) -> None:
    specification, _ = compiled

    tasks = specification["root"]["dag"]["tasks"]

    assert set(tasks) == {
        "base-resolution", "workspace-pruning", "dataset-download", "message-validation", "condition-1"
    }  # fmt: skip
    condition = tasks["condition-1"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--message-validation-Output'] == true"


def test_nothing_is_trained_before_the_base_model_is_measured(compiled: Any) -> None:
    specification, _ = compiled

    tasks = tasks_for_new_rows(specification)

    assert set(tasks["osft-training"]["dependentTasks"]) == {
        "baseline-evaluation", "message-processing", "training-placement"
    }  # fmt: skip
    # It runs beside the first steps: what it finds wrong ends the run before anything is measured.
    assert "dependentTasks" not in tasks["training-placement"]
    assert tasks["baseline-evaluation"]["dependentTasks"] == ["message-processing"]
    assert "baseline-evaluation" in tasks["forgetting-evaluation"]["dependentTasks"]


def test_the_base_model_is_asked_all_that_the_tuned_one_is(compiled: Any) -> None:
    specification, _ = compiled

    baseline, evaluation = (
        tasks_for_new_rows(specification)[step]["inputs"]["parameters"]
        for step in ("baseline-evaluation", "forgetting-evaluation")
    )

    assert baseline == {name: value for name, value in evaluation.items() if name != "fail_run"}
    asked = set(specification["components"]["comp-forgetting-evaluation"]["inputDefinitions"]["parameters"])
    asked = {name for name in asked - {"run_id", "accelerator_count"} if "pipelinechannel" not in name}
    assert {name: evaluation[name] for name in asked} == {
        name: {"componentInputParameter": f"pipelinechannel--eval_{name}"} for name in asked
    }


def test_both_evaluations_have_the_gpus_of_the_evaluation_and_room_for_processes_to_talk(compiled: Any) -> None:
    specification, platform = compiled

    steps = [f"exec-{step}" for step in ("baseline-evaluation", "forgetting-evaluation")]

    baseline, evaluation = (dict(containers(specification))[step]["resources"] for step in steps)
    assert baseline == evaluation
    assert "eval_gpus" in baseline["accelerator"]["resourceCount"]
    # As for the training: KFP's driver makes nothing of a number.
    assert specification["root"]["inputDefinitions"]["parameters"]["eval_gpus"]["parameterType"] == "STRING"
    for step in steps:
        (mount,) = kubernetes_executors(platform)[step]["emptyDirMounts"]
        assert (mount["mountPath"], mount["medium"]) == ("/dev/shm", "Memory")  # noqa: S108


def test_the_training_step_requests_what_its_placement_says(compiled: Any) -> None:
    specification, _ = compiled

    resources = dict(containers(specification))["exec-osft-training"]["resources"]
    outputs = specification["components"]["comp-training-placement"]["outputDefinitions"]["parameters"]

    assert "training-placement-gpus" in resources["accelerator"]["resourceCount"]
    assert "training-placement-cpu" in resources["resourceCpuLimit"]
    assert "training-placement-memory" in resources["resourceMemoryLimit"]
    # KFP's driver reads what it puts into a pod as texts: of a number it makes nothing, and the pod gets no GPU.
    assert {output["parameterType"] for output in outputs.values()} == {"STRING"}


def test_a_training_whose_step_is_lost_is_tried_again(compiled: Any) -> None:
    specification, _ = compiled

    policy = tasks_for_new_rows(specification)["osft-training"]["retryPolicy"]

    assert policy["maxRetryCount"] == 2
    assert policy["backoffDuration"] == "60s"


def test_a_training_is_saved_as_often_as_one_outside_the_pipeline(compiled: Any) -> None:
    specification, _ = compiled
    defaults = {field.name: field.default for field in fields(TrainingConfig)}

    parameter = specification["root"]["inputDefinitions"]["parameters"]["train_checkpoint_every_minutes"]

    assert parameter["defaultValue"] == defaults["checkpoint_every_minutes"]


def test_the_nodes_of_a_job_are_described_as_outside_the_pipeline(compiled: Any) -> None:
    specification, _ = compiled
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    settings = TrainJobSettings(runtime="torch-distributed", image="a/b:1")

    names = ("gpus_per_node", "cpu", "memory", "queue", "labels", "node_selector", "env", "deadline_hours")

    assert {name: parameters[f"train_{name}"]["defaultValue"] for name in names} == {
        name: getattr(settings, name) for name in names
    }
    assert parameters["workspace_pvc"]["defaultValue"] == settings.workspace_claim


def test_the_model_is_promoted_only_when_it_passed(compiled: Any) -> None:
    specification, _ = compiled

    components = specification["components"]
    promotion = tasks_for_new_rows(specification)["promotion"]
    passed = promotion["inputs"]["parameters"]["passed"]
    (condition,) = components[promotion["componentRef"]["name"]]["dag"]["tasks"].values()
    trigger = condition["triggerPolicy"]["condition"]
    assert passed["taskOutputParameter"] == {"outputParameterKey": "passed", "producerTask": "forgetting-evaluation"}
    assert trigger == "inputs.parameter_values['pipelinechannel--passed'] == true"
    registration, promoted = components[condition["componentRef"]["name"]]["dag"]["tasks"].items()
    assert promoted[0] == "model-promotion"
    assert registration[1]["dependentTasks"] == ["model-promotion"]
    is_given = registration[1]["triggerPolicy"]["condition"]
    assert is_given == "inputs.parameter_values['pipelinechannel--registry_address'] != ''"
    assert list(components[registration[1]["componentRef"]["name"]]["dag"]["tasks"]) == ["model-registration"]


def test_images_mount_path_and_environment_are_those_of_the_deployment(tmp_path: Path) -> None:
    deployment = Deployment(
        image="reg.example:5000/a/cpu:1.2", trainer_image=f"b/gpu@sha256:{'a' * 64}", workspace_path="/mnt/ws"
    )

    compile_pipeline(PIPELINES[NAME], tmp_path / "x.yaml", deployment)

    specification, platform = yaml.safe_load_all((tmp_path / "x.yaml").read_text())
    images = {name: container["image"] for name, container in containers(specification)}
    on_gpus = ("exec-baseline-evaluation", "exec-osft-training", "exec-forgetting-evaluation")
    assert {images[name] for name in on_gpus} == {f"b/gpu@sha256:{'a' * 64}"}
    assert images["exec-dataset-download"] == images["exec-model-promotion"] == "reg.example:5000/a/cpu:1.2"
    for name, container in containers(specification):
        assert {"name": "OSFT_WORKSPACE", "value": "/mnt/ws"} in container["env"]
        assert {"name": "OSFT_TRAINER_IMAGE", "value": deployment.trainer_image} in container["env"]
        (mount,) = kubernetes_executors(platform)[name]["pvcMount"]
        assert mount["mountPath"] == "/mnt/ws"


def test_the_claim_and_the_names_of_the_secrets_are_parameters(compiled: Any) -> None:
    specification, platform = compiled
    parameters = specification["root"]["inputDefinitions"]["parameters"]

    download = kubernetes_executors(platform)["exec-dataset-download"]
    assert download["pvcMount"][0]["pvcNameParameter"] == {"componentInputParameter": "workspace_pvc"}
    secrets = [secret["secretNameParameter"]["componentInputParameter"] for secret in download["secretAsEnv"]]
    assert secrets == ["data_s3_secret", "model_hub_secret"]
    assert all(secret["optional"] for secret in download["secretAsEnv"])
    assert {name for name in parameters if "secret" in name} == {*secrets, "registry_secret"}


def test_every_parameter_is_described_grouped_and_has_a_default_but_the_data(compiled: Any) -> None:
    specification, _ = compiled

    parameters = specification["root"]["inputDefinitions"]["parameters"]

    assert [name for name, parameter in parameters.items() if not parameter.get("isOptional")] == ["data_uri"]
    assert not [name for name, parameter in parameters.items() if not parameter.get("description")]
    groups = {name.partition("_")[0] for name in parameters}
    assert groups == {"data", "model", "train", "eval", "promote", "registry", "keep", "workspace"}


def test_no_step_is_cached_by_kfp(compiled: Any) -> None:
    specification, _ = compiled

    graphs = [specification["root"], *specification["components"].values()]
    tasks = {name: task for graph in graphs for name, task in graph.get("dag", {}).get("tasks", {}).items()}
    assert set(STEPS) <= set(tasks)
    assert not [name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")]


def test_the_ratios_of_a_sweep_wait_for_the_base_and_run_as_many_at_once_as_the_deployment_says(tmp_path: Path) -> None:
    compile_pipeline(PIPELINES[SWEEP], tmp_path / "x.yaml", Deployment(parallel_ratios=3))

    specification, _ = yaml.safe_load_all((tmp_path / "x.yaml").read_text())
    tasks = tasks_for_new_rows(specification)
    (loop,) = (task for task in tasks.values() if "iteratorPolicy" in task)
    assert loop["iteratorPolicy"] == {"parallelismLimit": 3}
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--ratio-runs-Output"}
    assert set(loop["dependentTasks"]) == {"baseline-evaluation", "message-processing", "ratio-runs"}
    # What is wrong with the cluster is known before anything is measured.
    assert "dependentTasks" not in tasks["training-placement"]
    assert "training-placement" in tasks["ratio-runs"]["dependentTasks"]
    assert set(tasks["ratio-choice"]["dependentTasks"]) == {"for-loop-2", "ratio-runs"}
    inside = specification["components"][loop["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inside) == {"training-placement-2", "osft-training", "forgetting-evaluation"}


def break_image(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    dict(containers(specification))["exec-osft-training"]["image"] = "trainer"


def break_resources(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    del dict(containers(specification))["exec-osft-training"]["resources"]["resourceMemoryLimit"]


def break_command(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    dict(containers(specification))["exec-osft-training"]["command"][2] += "pip install torch"


def break_mount(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    del kubernetes_executors(platform)["exec-osft-training"]["pvcMount"]


def break_condition(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    del specification["components"]["comp-condition-1"]["inputDefinitions"]["parameters"]["pipelinechannel--eval_gpus"]


def break_claim(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    (mount,) = kubernetes_executors(platform)["exec-base-resolution"]["pvcMount"]
    mount["pvcNameParameter"] = {"componentInputParameter": "claim"}


def break_schema(specification: dict[str, Any], platform: dict[str, Any]) -> None:
    specification["pipelineinfo"] = {}


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (break_image, "exec-osft-training runs in 'trainer', which has no tag or digest"),
        (break_resources, "exec-osft-training has no MemoryLimit"),
        (break_command, "exec-osft-training installs packages when it starts"),
        (break_mount, "exec-osft-training does not mount the workspace at /workspace"),
        (break_condition, "baseline-evaluation reads pipelinechannel--eval_gpus, which comp-condition-1 does not have"),
        (break_claim, "base-resolution reads claim, which root does not have"),
        (break_schema, "it is not KFP IR"),
    ],
)
def test_what_a_cluster_would_trip_over_is_found(compiled: Any, break_it: Any, problem: str) -> None:
    specification, platform = copy.deepcopy(compiled)
    assert find_problems(specification, platform, "/workspace") == []

    break_it(specification, platform)

    assert find_problems(specification, platform, "/workspace")[0].startswith(problem)


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("a/b:1.0", True), (f"a/b@sha256:{'0' * 64}", True), (f"a/b:latest@sha256:{'0' * 64}", True),
        ("a/b", False), ("a/b:latest", False), ("reg:5000/a/b", False), ("reg:5000/a/b:v1", True), ("", False),
        ("a/b@sha256:123", False), ("a b:1", False), ("A/b:1", False),
    ],
)  # fmt: skip
def test_an_image_is_pinned_by_a_digest_or_a_tag_other_than_latest(image: str, pinned: bool) -> None:
    assert is_pinned(image) is pinned


@pytest.mark.parametrize("image", ["REGISTRY/pipeline:0.1.0", "a b:1", ""])
def test_what_is_no_image_reference_is_told_apart_from_what_is_not_pinned(image: str) -> None:
    with pytest.raises(ConfigError, match=f"--trainer-image '{image}' is no image reference"):
        Deployment(trainer_image=image)


@pytest.mark.parametrize("path", ["workspace", "/", "", "/a b"])
def test_a_workspace_path_that_is_not_absolute_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="is not an absolute path below '/'"):
        Deployment(workspace_path=path)
