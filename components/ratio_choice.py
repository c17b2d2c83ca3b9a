"""After the evaluations of a sweep: the ratio to take, the report of the trade-off, and the model as the run's own."""

from typing import NamedTuple

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def ratio_choice(
    run_id: str,
    runs: list,
    evaluated: list,
    fail_run: bool,
    tuned: dsl.Output[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> NamedTuple("Outputs", [("ratio", float), ("passed", bool)]):  # type: ignore[valid-type]
    """Choose a ratio, write ``runs/<run_id>/choice``, and link its training and evaluation into ``runs/<run_id>``.

    Args:
        run_id: id of the pipeline run.
        runs: what the step ratio_runs returned.
        evaluated: whether each ratio passed; not read, it is there so that KFP waits for all evaluations.
        fail_run: if no model passed the step fails, once its report is written.
        tuned: manifest of the chosen ratio's model.
        evaluation: manifest of its results.
        metrics: gain and forgetting of the chosen ratio, and of each.
        report: the trade-off of all ratios, as a page.
        summary: the same in short, for a UI that shows no pages.

    Returns:
        The chosen ratio, and whether its model passed; where none did, it is the one to look at.
    """
    import shutil
    from collections import namedtuple

    from osft.logs import configure_logging
    from osft.sweep.choice import fail_unless_one_passed
    from osft.sweep.choice_step import MARKDOWN_NAME, SWEEP_PAGE_NAME, choose_model
    from osft.sweep.metrics import choice_metrics
    from osft.sweep.ratio_runs import RatioRun
    from osft.workspace import Workspace

    configure_logging()
    workspace = Workspace.from_environment()
    chosen = choose_model(workspace, run_id, [RatioRun(**run) for run in runs])
    for name, value in choice_metrics(chosen.choice).items():
        metrics.log_metric(name, value)
    shutil.copyfile(chosen.folder / SWEEP_PAGE_NAME, report.path)
    shutil.copyfile(chosen.folder / MARKDOWN_NAME, summary.path)
    tuned.metadata.update(path=f"{chosen.training.path}/final", ratio=chosen.choice.ratio)
    chosen.training.save(tuned.path)
    chosen.evaluation.save(evaluation.path)
    if fail_run:
        fail_unless_one_passed(chosen.choice, chosen.folder / SWEEP_PAGE_NAME)
    Outputs = namedtuple("Outputs", ["ratio", "passed"])
    return Outputs(chosen.choice.ratio, chosen.choice.passed)
