"""The same data at several unfreeze ratios: how much is learnt and forgotten at each, and the best one promoted.

Rows, tokens and the base's scores are made once. Each ratio is trained and evaluated as a run of its own,
``<run id>-ratio-<ratio>``, so that runs can be compared; the chosen one becomes the model of the sweep's own run.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.ratio_choice import ratio_choice
from components.ratio_runs import ratio_runs
from pipelines.continual_learning import continual_learning
from pipelines.placement import give_resources, mount_workspace
from pipelines.shared_parameters import with_parameters_of
from pipelines.steps import RUN_ID, measure_base, place_training, promote, take_rows, train_and_evaluate

RATIOS = inspect.Parameter(
    "sweep_ratios", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=list, default=[0.1, 0.25, 0.5]
)

# What may run at once is set as the pipeline is compiled: KFP has no parameter for it.
PARALLEL_RATIOS = 1


@dsl.pipeline(
    name="osft-ratio-sweep",
    description="Fine-tune a language model on the same data at several unfreeze ratios and promote the best.",
)
@with_parameters_of(
    continual_learning,
    instead_of="train_unfreeze_rank_ratio",
    parameter=RATIOS,
    description="Shares of each weight's singular directions that may move, above 0, at most 1: one model each.",
)
def ratio_sweep(given: Mapping[str, Any]) -> dsl.Artifact:
    """Fine-tune a language model on the same data at several unfreeze ratios and promote the best."""
    start = take_rows(given)
    with dsl.If(start.has_new_rows == True, name="new-rows"):  # noqa: E712 kfp builds the condition from ==
        # Each ratio has one more inside the loop, which comes late: what is wrong with the cluster is known now.
        placement = place_training(given)
        measured = measure_base(given, start)
        runs = ratio_runs(
            run_id=RUN_ID,
            ratios=given["sweep_ratios"],
            base=start.base,
            rows=start.rows,
            valid=start.valid,
            processed=measured.processed,
        ).after(placement)
        with dsl.ParallelFor(runs.output, name="ratios", parallelism=PARALLEL_RATIOS) as run:
            # A model that does not pass is a point of the curve, and no reason to end the others.
            _, evaluation = train_and_evaluate(
                given, start, measured, run_id=run.run_id, unfreeze_rank_ratio=run.ratio, fail_run=False
            )
        choice = ratio_choice(
            run_id=RUN_ID,
            runs=runs.output,
            evaluated=dsl.Collected(evaluation.outputs["passed"]),
            fail_run=given["eval_fail_run"],
        )
        promote(
            given,
            start,
            passed=choice.outputs["passed"],
            tuned=choice.outputs["tuned"],
            evaluation=choice.outputs["evaluation"],
        )
        for task in (runs, choice):
            give_resources(task, cpu="2", memory="8Gi")
            mount_workspace(task, given["workspace_pvc"])
    return start.base
