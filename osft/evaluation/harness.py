"""Run lm-eval on one model at a time and keep every document's result.

Base and tuned model get the same task objects, loaded once: the same documents, prompts, few-shot examples and
seeds, which is checked by lm-eval's own hashes when the two results are paired. A measurement holds plain
values only, so that one of a known base model can be kept and paired later.

Which metric counts, when a task has several: the first of ``PREFERRED_METRICS`` that the task has, else the
first that it declares; of several answer filters the first that it declares (gsm8k: strict-match). The rule
looks at names alone, never at scores, so that it is the same for both models. The other metrics are kept for
information.
"""

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.tasks import TaskManager

from osft.errors import EvaluationError, one_line
from osft.evaluation.answers import describe_document
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.forgetting import SecondaryMetric, TaskComparison, TaskLabel, compare_documents, compare_values
from osft.evaluation.model import EvaluatedModel, ModelSource
from osft.evaluation.tasks import RequestedTask

logger = logging.getLogger(__name__)

PREFERRED_METRICS = ("exact_match", "acc_norm", "acc", "prompt_level_strict_acc", "pass@1", "em", "f1")
"""Strict scores of whole answers first; acc_norm before acc, as public leaderboards report multiple choice."""

MEAN_TOLERANCE = 1e-6
"""Two floats are the same mean up to this, relative: lm-eval sums in another order."""

LM_EVAL_ERRORS = (AssertionError, IndexError, KeyError, TypeError, ValueError, RuntimeError, OSError)
"""What lm-eval raises for tasks that do not fit a model, and torch when memory runs out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentMeasurement:
    """One model's result on one document."""

    doc_id: int
    fingerprint: str
    """lm-eval's hashes of the document and of its prompt: equal for both models, or they are not comparable."""

    score: float | None
    """None where the task's score is no mean over documents."""

    prompt: str
    gold: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMeasurement:
    """One model's result on one task."""

    task: str
    metric: str
    higher_is_better: bool
    value: float
    """lm-eval's score of the task."""

    other_values: Mapping[str, float]
    """lm-eval's other scores of the task, by metric name."""

    documents: tuple[DocumentMeasurement, ...]
    version: str
    num_fewshot: int

    @property
    def is_document_mean(self) -> bool:
        """Whether the task's score is the mean of its documents' scores, so that these can be paired."""
        scores = [document.score for document in self.documents]
        if any(score is None for score in scores):
            return False
        mean = math.fsum(score for score in scores if score is not None) / len(scores)
        return math.isclose(mean, self.value, rel_tol=MEAN_TOLERANCE, abs_tol=MEAN_TOLERANCE)


def measure(
    source: ModelSource,
    requested: Sequence[RequestedTask],
    config: EvaluationConfig,
    *,
    label: str,
    apply_chat_template: bool,
) -> dict[str, TaskMeasurement]:
    """Evaluate one model on all tasks; its memory is free again afterwards.

    Args:
        source: a model that was found whole.
        requested: the tasks, loaded.
        config: batch size, few-shot examples, limit, seed.
        label: ``base`` or ``tuned``, for log lines and errors.
        apply_chat_template: whether prompts are formatted; the same for both models.

    Returns:
        The measurements by name of the task; groups are given as their tasks.

    Raises:
        EvaluationError: if the model cannot be loaded or a task cannot be run on it, or a score is not finite.
    """
    logger.info("%s: loading %s", label, source.name)
    try:
        model = EvaluatedModel(source, label=label, batch_size=config.batch_size)
    except LM_EVAL_ERRORS as error:
        raise EvaluationError(f"{label} model '{source.name}' cannot be loaded: {one_line(error)}") from error
    try:
        results = _run_lm_eval(model, requested, config, apply_chat_template=apply_chat_template)
    except LM_EVAL_ERRORS as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(
            f"lm-eval failed on the {label} model '{source.name}': {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {task: _task_measurement(task, results, label=label) for task in results["samples"]}


def compare(
    requested: Sequence[RequestedTask],
    base: Mapping[str, TaskMeasurement],
    tuned: Mapping[str, TaskMeasurement],
    *,
    seed: int,
) -> tuple[TaskComparison, ...]:
    """Pair two measurements and compare them, one comparison for each name that the user gave.

    A group that lm-eval scores as one over all its documents (mmlu) is one comparison, with the documents of
    all its tasks; the tasks of another group are compared each.

    Raises:
        EvaluationError: if the two models were not asked the same.
    """
    comparisons = []
    for one in requested:
        check_same_questions([base[leaf] for leaf in one.leaves], [tuned[leaf] for leaf in one.leaves])
        for name, leaves in _rows(one, base, tuned):
            label = TaskLabel(
                task=name,
                kind=one.kind,
                metric=base[leaves[0]].metric,
                higher_is_better=base[leaves[0]].higher_is_better,
                secondary=_secondary(base[leaves[0]], tuned[leaves[0]]) if len(leaves) == 1 else (),
            )
            comparisons.append(
                _compare(label, [base[leaf] for leaf in leaves], [tuned[leaf] for leaf in leaves], seed=seed)
            )
    return tuple(comparisons)


def check_same_questions(base: Sequence[TaskMeasurement], tuned: Sequence[TaskMeasurement]) -> None:
    """Refuse to pair results on different documents or prompts.

    Raises:
        EvaluationError: if a document or a prompt differs.
    """
    for before, after in zip(base, tuned, strict=True):
        pairs = zip(before.documents, after.documents, strict=False)
        same = [(one.doc_id, one.fingerprint) == (other.doc_id, other.fingerprint) for one, other in pairs]
        if len(before.documents) != len(after.documents) or not all(same):
            document = before.documents[same.index(False)].doc_id if False in same else len(same)
            raise EvaluationError(
                f"task '{before.task}', document {document}: base and tuned model were asked different prompts. Their "
                "chat templates differ: save the base model's tokenizer with the tuned model, or do not apply one."
            )


def _run_lm_eval(
    model: EvaluatedModel, requested: Sequence[RequestedTask], config: EvaluationConfig, *, apply_chat_template: bool
) -> Mapping[str, Any]:
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[one.item for one in requested],
        # The tasks are loaded; without a manager lm-eval reads its whole index again, for each model.
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        apply_chat_template=apply_chat_template,
        # lm-eval's own bootstrap of each model's error is of no use for paired scores, and slow.
        bootstrap_iters=0,
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    if results is None:
        raise EvaluationError(
            "lm-eval returned nothing on this process. Run the evaluation in one process, not torchrun."
        )
    return results


def _task_measurement(task: str, results: Mapping[str, Any], *, label: str) -> TaskMeasurement:
    """Return one task's result from lm-eval's dictionary of all."""
    values = {
        tuple(key.rsplit(",", 1)): value
        for key, value in results["results"][task].items()
        if "," in key and "_stderr," not in key
    }
    metric, answer_filter = choose_metric(task, list(values))
    samples = [sample for sample in results["samples"][task] if sample["filter"] == answer_filter]
    higher_is_better = results["higher_is_better"][task].get(metric)
    finite = {
        name: _finite(value, task=task, metric=name, label=label)
        for (name, its_filter), value in values.items()
        if its_filter == answer_filter and isinstance(value, int | float | np.number)
    }
    if metric not in finite:
        raise EvaluationError(
            f"task '{task}': {metric} is no number for the {label} model. Give the task another metric."
        )
    return TaskMeasurement(
        task=task,
        metric=metric,
        higher_is_better=True if higher_is_better is None else bool(higher_is_better),
        value=finite[metric],
        other_values={name: value for name, value in finite.items() if name != metric},
        documents=tuple(
            _document_measurement(sample, metric, task=task, label=label)
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ),
        version=str(results["versions"].get(task)),
        num_fewshot=int(results["n-shot"].get(task) or 0),
    )


def choose_metric(task: str, metrics: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the (metric, answer filter) that counts; the module's docstring has the rule.

    Args:
        task: for the error.
        metrics: in the task's order.

    Raises:
        EvaluationError: if there is none.
    """
    for preferred in PREFERRED_METRICS:
        for metric, answer_filter in metrics:
            if metric == preferred:
                return metric, answer_filter
    if not metrics:
        raise EvaluationError(f"task '{task}' has no metric. Give it a metric_list.")
    return metrics[0]


def _document_measurement(sample: Mapping[str, Any], metric: str, *, task: str, label: str) -> DocumentMeasurement:
    score = sample.get(metric)
    description = describe_document(sample, metric)
    return DocumentMeasurement(
        doc_id=sample["doc_id"],
        fingerprint=f"{sample['doc_hash']}:{sample['prompt_hash']}",
        score=_finite(score, task=f"{task}', document '{sample['doc_id']}", metric=metric, label=label)
        if isinstance(score, bool | int | float | np.number | np.bool_)
        else None,
        prompt=description.prompt,
        gold=description.gold,
        answer=description.answer,
    )


def _finite(value: Any, *, task: str, metric: str, label: str) -> float:
    if not math.isfinite(value):
        raise EvaluationError(
            f"task '{task}': {metric} is {value} for the {label} model. "
            "Its weights are broken, or the metric is not defined for these documents."
        )
    return float(value)


def _rows(
    one: RequestedTask, base: Mapping[str, TaskMeasurement], tuned: Mapping[str, TaskMeasurement]
) -> list[tuple[str, tuple[str, ...]]]:
    """Return the comparisons that a requested name becomes: its name and the tasks whose documents it joins."""
    metrics = {base[leaf].metric for leaf in one.leaves}
    are_means = all(run[leaf].is_document_mean for run in (base, tuned) for leaf in one.leaves)
    if len(one.leaves) > 1 and len(metrics) == 1 and are_means and one.pools(metrics.pop()):
        return [(one.name, one.leaves)]
    return [(leaf, (leaf,)) for leaf in one.leaves]


def _compare(
    label: TaskLabel, base: Sequence[TaskMeasurement], tuned: Sequence[TaskMeasurement], *, seed: int
) -> TaskComparison:
    if all(one.is_document_mean for one in (*base, *tuned)):
        return compare_documents(label, _scores(base), _scores(tuned), seed=seed)
    # A row that joins several tasks is one of document means, so here is one task.
    return compare_values(label, base=base[0].value, tuned=tuned[0].value, num_documents=len(base[0].documents))


def _scores(measurements: Sequence[TaskMeasurement]) -> np.ndarray:
    return np.array([document.score for one in measurements for document in one.documents], dtype=np.float64)


def _secondary(base: TaskMeasurement, tuned: TaskMeasurement) -> tuple[SecondaryMetric, ...]:
    return tuple(
        SecondaryMetric(metric=metric, base=value, tuned=tuned.other_values[metric])
        for metric, value in base.other_values.items()
        if metric in tuned.other_values
    )
