"""The images are pinned and run without root, and the manifests grant what the pipeline needs and no more."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "images" / "manifests"
CONTAINERFILES = sorted((ROOT / "images").glob("*/Containerfile"))
BASE_WITH_DIGEST = re.compile(r"\S+:[\w.-]+@sha256:[0-9a-f]{64}")
BASE_WITH_TAG = re.compile(r"\S+/\S+:[\w.-]+")
WRITABLE_VARIABLES = (
    "HOME",
    "HF_HOME",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
)

every_image = pytest.mark.parametrize("containerfile", CONTAINERFILES, ids=lambda path: path.parent.name)


def instructions(containerfile: Path) -> list[tuple[str, str]]:
    """Return the (keyword, argument) pairs of a Containerfile: comments dropped, continued lines joined."""
    lines = [line for line in containerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def final_stage(containerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions from the last FROM on: those that make the image that runs."""
    found = instructions(containerfile)
    last_from = max(index for index, (keyword, _) in enumerate(found) if keyword == "FROM")
    return found[last_from:]


def manifest_objects() -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text(encoding="utf-8"))
    texts = [(MANIFESTS / name).read_text(encoding="utf-8") for name in kustomization["resources"]]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def manifest_object(kind: str) -> dict[str, Any]:
    (found,) = [document for document in manifest_objects() if document["kind"] == kind]
    return found


def test_there_is_one_image_for_cpu_steps_and_one_for_training() -> None:
    names = [path.parent.name for path in CONTAINERFILES]

    assert names == ["pipeline", "trainer"]


@every_image
def test_the_image_that_runs_starts_from_a_base_with_tag_and_digest(containerfile: Path) -> None:
    keyword, base = final_stage(containerfile)[0]

    assert keyword == "FROM"
    assert BASE_WITH_DIGEST.fullmatch(base)


@every_image
def test_every_stage_starts_from_a_tag_that_is_not_latest(containerfile: Path) -> None:
    bases = [argument.split()[0] for keyword, argument in instructions(containerfile) if keyword == "FROM"]

    for base in bases:
        assert BASE_WITH_TAG.match(base), base
        assert ":latest" not in base


@every_image
def test_the_image_ends_as_a_numeric_user_that_is_not_root(containerfile: Path) -> None:
    users = [argument for keyword, argument in final_stage(containerfile) if keyword == "USER"]

    assert users[-1] == "1001"


@every_image
def test_home_and_every_cache_lie_on_a_path_that_stays_writable(containerfile: Path) -> None:
    environment = " ".join(argument for keyword, argument in final_stage(containerfile) if keyword == "ENV")

    for variable in WRITABLE_VARIABLES:
        assert re.search(rf"\b{variable}=/tmp(/\S+)?(\s|$)", environment), variable


@every_image
def test_packages_are_pinned_and_none_can_be_installed_at_run_time(containerfile: Path) -> None:
    commands = [argument for keyword, argument in instructions(containerfile) if keyword == "RUN"]
    pip_commands = [part for argument in commands for part in argument.split("&&") if "-m pip install" in part]

    assert pip_commands
    assert all("--constraint constraints.txt" in part for part in pip_commands)
    assert any("pip uninstall --yes pip" in argument for argument in commands)
    assert not any("pip" in argument for keyword, argument in final_stage(containerfile) if keyword == "RUN")


def test_what_an_image_copies_is_not_kept_from_the_build() -> None:
    ignore_lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignore_lines if line.startswith("!")}
    copies = [
        argument
        for containerfile in CONTAINERFILES
        for keyword, argument in instructions(containerfile)
        if keyword == "COPY" and not argument.startswith("--from")
    ]
    sources = {source for argument in copies for source in argument.split()[:-1]}

    assert sources <= allowed
    assert all((ROOT / source).exists() for source in sources)


def test_the_gpu_pins_add_to_the_common_pins_and_contradict_none() -> None:
    pins = {}
    for path in (ROOT / "constraints.txt", ROOT / "images" / "trainer" / "constraints-gpu.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        pins[path.name] = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}

    assert {"torch", "transformers", "kfp"} <= pins["constraints.txt"]
    assert {"flash-attn", "liger-kernel", "triton"} <= pins["constraints-gpu.txt"]
    assert not pins["constraints.txt"] & pins["constraints-gpu.txt"]


def test_constraints_name_one_released_version_each_and_no_build_of_one_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]

    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    assert len({pin.partition("==")[0].lower() for pin in pins}) == len(pins)


def test_the_workspace_can_be_mounted_by_many_pods_at_once() -> None:
    claim = manifest_object("PersistentVolumeClaim")

    assert claim["metadata"]["name"] == "osft-workspace"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("kind", ["RoleBinding", "ClusterRoleBinding"])
def test_the_rights_go_to_the_account_that_pipeline_steps_run_under(kind: str) -> None:
    binding = manifest_object(kind)

    role = manifest_object(binding["roleRef"]["kind"])

    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert (subject["kind"], subject["name"]) == ("ServiceAccount", "pipeline-runner-dspa")


def test_a_step_may_create_follow_and_delete_trainjobs() -> None:
    rules = manifest_object("Role")["rules"]

    (rule,) = [rule for rule in rules if "trainjobs" in rule["resources"]]

    assert rule["apiGroups"] == ["trainer.kubeflow.org"]
    assert set(rule["verbs"]) == {"create", "get", "watch", "delete"}


def test_no_right_is_a_wildcard_and_cluster_wide_rights_only_read() -> None:
    cluster_role = manifest_object("ClusterRole")
    rules = [*manifest_object("Role")["rules"], *cluster_role["rules"]]

    assert not any("*" in rule[key] for rule in rules for key in ("apiGroups", "resources", "verbs"))
    assert all(rule["verbs"] == ["get"] for rule in cluster_role["rules"])
