"""Five scheduled runs in a row, twice: ``python run_schedule.py``, or ``make demo-schedule``.

Each run teaches the demo's model one more of the domains in ``demo/domains``, from the version that the run before it
promoted. Once with the subspace memory, and once with plain fine-tuning of the same weights, which is a ratio of 1
and no memory. Both learn the same rows with the same steps; the gate lets every model pass, so that the chains are of
equal length. A folder that holds some of the runs already goes on after them.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from demo.domains.domains import read_domains
from demo.parameters import DEMO_PARAMETERS
from demo.task_files import RETENTION_TASKS
from osft.versions.accuracy_matrix import matrix_of
from osft.versions.journal import Journal
from osft.versions.lineage import chain_of
from osft.versions.matrix_table import figure_lines, render_matrix
from osft.workspace import Workspace
from run_local import run

DEMO = Path(__file__).resolve().parent / "demo"
RUNS = 5

SCHEDULE_PARAMETERS = {
    **DEMO_PARAMETERS,
    "data_holdout_fraction": 0.2,
    "train_num_epochs": 40,
    "eval_tasks": ",".join(RETENTION_TASKS),
    "eval_target_tasks": "",
    "eval_max_forgetting": 1.0,
    "eval_max_cumulative_forgetting": 1.0,
    "model_origin": str(DEMO / "model"),
}
METHODS: dict[str, dict[str, Any]] = {
    "schedule-osft": {"train_unfreeze_rank_ratio": 0.5, "train_learning_rate": 4e-3, "train_remember": True},
    "schedule-plain": {"train_unfreeze_rank_ratio": 1.0, "train_learning_rate": 1e-3, "train_remember": False},
}
TITLES = {
    "schedule-osft": "OSFT with a memory of what was learnt before",
    "schedule-plain": "Plain fine-tuning of the same weights",
}


def main(
    workspace: Annotated[Path, typer.Option(help="Folder that stands for the shared volume.")] = Path("workspace"),
    runs: Annotated[int, typer.Option(min=1, max=10, help="Runs of each method.")] = RUNS,
) -> None:
    """Play scheduled runs on the embedded model and print what each chain still knows."""
    workspace.mkdir(parents=True, exist_ok=True)
    volume = Workspace(workspace.resolve())
    domains = [domain.name for domain in read_domains()][:runs]
    for method, title in TITLES.items():
        for number in range(count_promoted(volume, method), len(domains)):
            typer.echo(f"\n=== {title}: run {number + 1} of {runs}, {domains[number]}")
            run(parameters(method, domains[number]), volume)
    for method in METHODS:
        show(volume, method)


def count_promoted(volume: Workspace, method: str) -> int:
    """Return how many versions a method's chain has."""
    return len(Journal(volume, method).entries())


def parameters(method: str, domain: str) -> dict[str, Any]:
    """Return the pipeline's parameters of one run."""
    return {
        **SCHEDULE_PARAMETERS,
        **METHODS[method],
        "data_uri": str(DEMO / "domains" / "data" / f"{domain}.jsonl"),
        "model_base": f"promoted://{method}",
        "promote_model_name": method,
    }


def show(volume: Workspace, method: str) -> None:
    """Print the accuracy matrix of a method's chain."""
    console = Console()
    matrix = matrix_of(chain_of(volume, method))
    console.print(f"\n{TITLES[method]}", style="bold")
    console.print(render_matrix(matrix, console.width))
    for line in figure_lines(matrix):
        console.print(line)
    console.print(f"More: osft lineage {volume.root.name} {method} --html lineage.html")


if __name__ == "__main__":
    typer.run(main)
