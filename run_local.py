"""Run the continual-learning pipeline on this machine, through KFP's own local runner.

    python run_local.py --demo
    python run_local.py my.jsonl --set model_base=./model --set eval_tasks=arc_easy

Every step is a process of its own, as it is a pod of its own on a cluster; the workspace is a folder. What only
Kubernetes knows (images, GPUs, claims, secrets) is left aside.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from kfp import local
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec
from rich.console import Console

from demo.parameters import DEMO_PARAMETERS
from osft.data.files import VALIDATION_PAGE_NAME
from osft.errors import ConfigError
from osft.evaluation.evaluate import HTML_NAME, REPORT_NAME
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.terminal import render_table
from osft.sweep.choice_step import CHOICE_STEP, SWEEP_PAGE_NAME
from osft.workspace import WORKSPACE_VARIABLE, Workspace
from pipelines.catalogue import DEFAULT_PIPELINE, choose_pipeline
from pipelines.continual_learning import continual_learning
from pipelines.settings import parse_settings

# In what the runner prints: the start of a step, a log line of the library, the error that ended a step.
STEP_STARTS = re.compile(r"Executing task .*'(?P<step>[\w-]+)'")
STEP_SAYS = re.compile(r"\s*(?P<message>\d\d:\d\d:\d\d [A-Z]+ osft\..*|osft\.errors\.\w+: .*)")
LOG_NAME = "local-run.log"


class StepLog(io.TextIOBase):
    """Takes what the runner prints: all of it goes to a file, what a person follows a run by to the terminal."""

    def __init__(self, log: IO[str], terminal: IO[str]) -> None:
        """Write to ``log`` and, in part, to ``terminal``."""
        self._log = log
        self._terminal = terminal
        self._line = ""

    def write(self, text: str) -> int:
        """Take ``text``; whole lines are looked at, a part of one waits for the rest."""
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if match := STEP_STARTS.search(line):
                self._terminal.write(f"\n{match['step']}\n")
            elif match := STEP_SAYS.match(line):
                self._terminal.write(f"  {match['message']}\n")
            self._terminal.flush()
        return len(text)

    def flush(self) -> None:
        """Bring the file up to date."""
        self._log.flush()


@contextlib.contextmanager
def quoted_interpreter() -> Iterator[None]:
    """Quote the interpreter's path for the length of the block.

    The runner puts ``sys.executable`` into a shell script as it is, where a path with a space would end at it.
    """
    plain = sys.executable
    sys.executable = shlex.quote(plain)
    try:
        yield
    finally:
        sys.executable = plain


@contextlib.contextmanager
def no_retries(specification: PipelineSpec) -> Iterator[None]:
    """Let no step be tried again for the length of the block: nobody takes a laptop away from it, so it fails again."""
    kept = PipelineSpec()
    kept.CopyFrom(specification)
    for part in (specification.root, *specification.components.values()):
        for task in part.dag.tasks.values():
            task.ClearField("retry_policy")
    try:
        yield
    finally:
        specification.CopyFrom(kept)


def run(arguments: dict[str, Any], workspace: Workspace, pipeline: BaseComponent = continual_learning) -> Path:
    """Run a pipeline and return the folder of the run.

    Raises:
        RuntimeError: if a step fails; its message is in the output before.
    """
    os.environ[WORKSPACE_VARIABLE] = str(workspace.root)
    # The steps' output is a log, where a redrawn bar would leave a line for each of its states.
    os.environ["TQDM_DISABLE"] = "1"
    # The runner warns that images and resources, which only a cluster uses, are not used here.
    warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner", category=UserWarning)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(workspace.root / "kfp"),
        # The runner deletes this folder at the end of a run: it must never be ours.
        workspace_root=tempfile.mkdtemp(prefix="kfp-workspace-"),
    )
    log_file = workspace.root / LOG_NAME
    with (
        log_file.open("w") as log,
        contextlib.redirect_stdout(StepLog(log, sys.stdout)),
        quoted_interpreter(),
        no_retries(pipeline.pipeline_spec),
    ):
        try:
            finished = pipeline(**arguments)
        except RuntimeError as error:
            raise RuntimeError(f"{error} All that the steps printed is in {log_file}.") from error
    return workspace.directory_of(finished.outputs["Output"].path).parent


def main(
    data_uri: Annotated[str | None, typer.Argument(help="Where the rows are; not needed with --demo.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run on the model and the data in demo/.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A pipeline parameter, name=value.")] = None,
    pipeline: Annotated[str, typer.Option(help="The pipeline to run.")] = DEFAULT_PIPELINE,
    workspace: Annotated[Path, typer.Option(help="Folder that stands for the shared volume.")] = Path("workspace"),
) -> None:
    """Run the continual-learning pipeline on this machine and print what the model gained and forgot."""
    try:
        chosen = choose_pipeline(pipeline)
        embedded = {name: value for name, value in DEMO_PARAMETERS.items() if name in chosen.component_spec.inputs}
        arguments = {**(embedded if demo else {}), **parse_settings(settings or [], chosen)}
        if data_uri is not None:
            arguments["data_uri"] = data_uri
        if "data_uri" not in arguments:
            raise ConfigError("DATA_URI is missing. Give it, or --demo.")
        workspace.mkdir(parents=True, exist_ok=True)
        folder = run(arguments, Workspace(workspace.resolve()), chosen)
        evaluation = folder / "evaluation"
        report = ForgettingReport.load(evaluation / REPORT_NAME) if evaluation.exists() else None
    except (ConfigError, OSError, RuntimeError) as error:
        typer.echo(f"run_local.py: {error}", err=True)
        raise typer.Exit(1) from error
    if report is None:
        typer.echo(f"No new rows: nothing was trained. Report: {folder / 'valid' / VALIDATION_PAGE_NAME}")
    else:
        Console().print(render_table(report))
        typer.echo(f"Report: {evaluation / HTML_NAME}")
    if (sweep := folder / CHOICE_STEP / SWEEP_PAGE_NAME).exists():
        typer.echo(f"All ratios: {sweep}")


if __name__ == "__main__":
    typer.run(main)
