"""Compile the pipelines to KFP IR, ready to upload: ``python compile.py`` writes ``dist/*.yaml``.

What differs from one cluster to the next is set here: images, and where the shared volume is mounted. The result
is read back and checked: a pipeline that the cluster would refuse, or start without its volume, is not written.
With ``--upload``, ``--run`` or ``--schedule`` it goes on to the pipeline server (:mod:`pipeline_server`).
"""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from google.protobuf import json_format
from kfp.compiler import Compiler
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components.images import PIPELINE_IMAGE, TRAINER_IMAGE
from osft.errors import ConfigError, OsftError
from osft.kubeflow.placement import IMAGE_VARIABLE
from osft.workspace import DEFAULT_WORKSPACE_PATH, WORKSPACE_VARIABLE, atomic_file
from pipeline_server.submission import Submission, open_server, submit
from pipelines.catalogue import DEFAULT_PIPELINE, PIPELINES, choose_pipeline
from pipelines.ratio_sweep import PARALLEL_RATIOS
from pipelines.settings import parse_settings

# An image's name, then a tag, or a digest, or both.
PINNED_IMAGE = re.compile(r"[a-z0-9][a-z0-9_./:-]*?(:(?P<tag>[\w][\w.-]{0,127}))?(@sha256:(?P<digest>[0-9a-f]{64}))?")
RESOURCES = ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What one cluster sets differently from another.

    Raises:
        ConfigError: if an image has no tag or digest, or ``latest``, or the workspace path is not absolute.
    """

    image: str = PIPELINE_IMAGE
    """Image of the CPU steps."""

    trainer_image: str = TRAINER_IMAGE
    """Image of training and evaluation."""

    workspace_path: str = DEFAULT_WORKSPACE_PATH
    """Where the shared volume is mounted in every step."""

    parallel_ratios: int = PARALLEL_RATIOS
    """How many ratios of a sweep run at once: as many times the GPUs of one."""

    def __post_init__(self) -> None:
        for option, image in (("--image", self.image), ("--trainer-image", self.trainer_image)):
            if not PINNED_IMAGE.fullmatch(image):
                raise ConfigError(
                    f"{option} '{image}' is no image reference. Its name is in lower case, without spaces."
                )
            if not is_pinned(image):
                raise ConfigError(f"{option} '{image}' needs a tag other than latest, or a digest.")
        if not re.fullmatch(r"(/[\w.-]+)+", self.workspace_path):
            raise ConfigError(f"--workspace-path '{self.workspace_path}' is not an absolute path below '/'.")

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every step: the workspace, a model cache that outlives the pod, the image of training."""
        return {
            WORKSPACE_VARIABLE: self.workspace_path,
            "HF_HOME": f"{self.workspace_path}/cache/huggingface",
            # What the pods of a TrainJob run in, unless the run names another image.
            IMAGE_VARIABLE: self.trainer_image,
            # In a log a redrawn bar would leave a line for each of its states.
            "TQDM_DISABLE": "1",
        }


def is_pinned(image: str) -> bool:
    """Return whether ``image`` names a digest, or a tag other than ``latest``."""
    match = PINNED_IMAGE.fullmatch(image)
    return bool(match and (match["digest"] or (match["tag"] or "latest") != "latest"))


def compile_pipeline(pipeline: BaseComponent, target: Path, deployment: Deployment) -> None:
    """Write ``pipeline`` for ``deployment`` to ``target``; equal inputs give equal bytes.

    Raises:
        ConfigError: if the result fails :func:`find_problems`; nothing is written then.
    """
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "pipeline.yaml"
        Compiler().compile(pipeline, str(draft))
        text = draft.read_text()
    specification, platform = yaml.safe_load_all(text)
    deploy(specification, platform, deployment)
    if problems := find_problems(specification, platform, deployment.workspace_path):
        raise ConfigError(f"{target.name} cannot be used: {'; '.join(problems)}.")
    # The comment at the top lists the parameters: the first thing that a reader of the file wants to know.
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    with atomic_file(target, "w") as file:
        file.write(header)
        yaml.safe_dump_all([specification, platform], file, sort_keys=True)


def deploy(specification: dict[str, Any], platform: dict[str, Any], deployment: Deployment) -> None:
    """Set the images, the mount path, the environment and the width of loops of ``deployment``, in place."""
    images = {PIPELINE_IMAGE: deployment.image, TRAINER_IMAGE: deployment.trainer_image}
    for _, container in containers(specification):
        container["image"] = images[container["image"]]
        container.setdefault("env", []).extend(
            {"name": name, "value": value} for name, value in deployment.environment.items()
        )
    for executor in kubernetes_executors(platform).values():
        for mount in executor.get("pvcMount", []):
            mount["mountPath"] = deployment.workspace_path
    for _, component in graphs(specification):
        for task in component["dag"]["tasks"].values():
            if "iteratorPolicy" in task:
                task["iteratorPolicy"]["parallelismLimit"] = deployment.parallel_ratios


def containers(specification: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield executor name and container of every step."""
    for name, executor in specification["deploymentSpec"]["executors"].items():
        yield name, executor["container"]


def graphs(specification: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of what has tasks: the pipeline, its conditions and loops, and the pipelines in it."""
    for name, component in [("root", specification["root"]), *specification["components"].items()]:
        if "dag" in component:
            yield name, component


def kubernetes_executors(platform: dict[str, Any]) -> dict[str, Any]:
    """Return what Kubernetes is told of each executor."""
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def find_problems(specification: dict[str, Any], platform: dict[str, Any], workspace_path: str) -> list[str]:
    """Return what is wrong with a compiled pipeline, one sentence each; nothing wrong, an empty list."""
    problems = []
    try:
        json_format.ParseDict(specification, PipelineSpec())
    except json_format.ParseError as error:
        problems.append(f"it is not KFP IR: {error}")
    for name, container in containers(specification):
        resources = container.get("resources", {})
        missing = [resource for resource in RESOURCES if not resources.get(f"resource{resource}")]
        if missing:
            problems.append(f"{name} has no {', '.join(missing)}")
        if not is_pinned(container["image"]):
            problems.append(f"{name} runs in '{container['image']}', which has no tag or digest, or latest")
        if any("pip install" in part for part in container["command"]):
            problems.append(f"{name} installs packages when it starts")
        mounts = kubernetes_executors(platform).get(name, {}).get("pvcMount", [])
        if [mount["mountPath"] for mount in mounts] != [workspace_path]:
            problems.append(f"{name} does not mount the workspace at {workspace_path}")
    return problems + find_missing_inputs(specification, platform)


def find_missing_inputs(specification: dict[str, Any], platform: dict[str, Any]) -> list[str]:
    """Return which steps read a parameter that the condition or pipeline around them does not have.

    kfp passes into a condition what its steps take as arguments, but not all of what their pods are made from: such a
    pipeline is accepted, and fails on the cluster as the step starts.
    """
    problems = []
    for name, component in graphs(specification):
        given = set(component.get("inputDefinitions", {}).get("parameters", {}))
        for step, task in component["dag"]["tasks"].items():
            executor = specification["components"][task["componentRef"]["name"]].get("executorLabel", "")
            read = {*_parameters_read(task), *_parameters_read(kubernetes_executors(platform).get(executor, {}))}
            problems += [f"{step} reads {missing}, which {name} does not have" for missing in sorted(read - given)]
    return problems


def _parameters_read(part: Any) -> Iterator[str]:
    """Yield the names of the parameters that a part of a step reads from what is around it."""
    if isinstance(part, dict):
        if isinstance(name := part.get("componentInputParameter"), str):
            yield name
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _parameters_read(inner)


def compile_all(output: Path, deployment: Deployment) -> None:
    """Write all pipelines to the folder ``output``, and say so.

    Raises:
        ConfigError: if one of them cannot be used.
    """
    for name, pipeline in PIPELINES.items():
        target = output / f"{name}.yaml"
        compile_pipeline(pipeline, target, deployment)
        typer.echo(
            f"wrote {target} (CPU steps in {deployment.image}, training and evaluation in {deployment.trainer_image})"
        )


def main(
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("dist"),
    image: Annotated[str, typer.Option(help="Image of the CPU steps.")] = PIPELINE_IMAGE,
    trainer_image: Annotated[str, typer.Option(help="Image of training and evaluation.")] = TRAINER_IMAGE,
    workspace_path: Annotated[str, typer.Option(help="Mount path of the shared volume.")] = DEFAULT_WORKSPACE_PATH,
    parallel_ratios: Annotated[int, typer.Option(min=1, help="Ratios of a sweep that run at once.")] = PARALLEL_RATIOS,
    list_only: Annotated[bool, typer.Option("--list", help="List the pipelines and write nothing.")] = False,
    upload: Annotated[bool, typer.Option("--upload", help="Upload what is new to the pipeline server.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Upload what is new, and start a run of it.")] = False,
    schedule: Annotated[str | None, typer.Option(help="The same on a schedule, a cron line: '0 2 * * 0'.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter of the runs, name=value.")] = None,
    pipeline: Annotated[str, typer.Option(help="The pipeline to upload, run or schedule.")] = DEFAULT_PIPELINE,
    experiment: Annotated[str, typer.Option(help="Experiment of the runs.")] = "continual-learning",
    name: Annotated[
        str | None, typer.Option(help="Name of the run or schedule. By default it says what it is.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests, and send none.")] = False,
) -> None:
    """Compile the pipelines to KFP IR; upload, run or schedule one on Data Science Pipelines."""
    if list_only:
        for pipeline_name, component in PIPELINES.items():
            typer.echo(f"{pipeline_name}.yaml  {component.description}")
        return
    logging.basicConfig(format="%(message)s")
    try:
        if settings and not run and schedule is None:
            raise ConfigError("--set is a parameter of runs. Give --run or --schedule with it.")
        deployment = Deployment(
            image=image,
            trainer_image=trainer_image,
            workspace_path=workspace_path,
            parallel_ratios=parallel_ratios,
        )
        compile_all(output, deployment)
        if upload or run or schedule is not None:
            chosen = choose_pipeline(pipeline)
            submission = Submission(
                pipeline=chosen,
                file=output / f"{pipeline}.yaml",
                arguments=parse_settings(settings or [], chosen),
                experiment=experiment,
                name=name,
                run=run,
                cron=schedule,
            )
            # kfp's own words are kept from the output; what is printed here goes to the output as it is now.
            tell = partial(typer.echo, file=sys.stdout)
            server = open_server(os.environ, tell if dry_run else None)
            for line in submit(server, submission, datetime.now(UTC)):
                if not dry_run:
                    tell(line)
    except (OsftError, OSError) as error:
        typer.echo(f"compile.py: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
