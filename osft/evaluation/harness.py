"""Run lm-eval on one model, name by name of the user's list, and keep every document's result.

Base and tuned model get the same task objects, loaded once: the same documents, prompts, few-shot examples and
seeds, which is checked by lm-eval's own hashes when the two results are paired. Each task or group starts from the
same seeds, so that what an evaluation measures does not depend on what an earlier, killed one has finished.

Results are kept as soon as a task or group is done, under a hash of all that determines them. The next evaluation of
the same model takes them from there: a known base model costs nothing, and the model that passed last is the next base.

Which metric counts, when a task has several, is decided by name (:mod:`osft.evaluation.metric_choice`).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import orjson
from lm_eval.evaluator import evaluate

from osft.content_cache import content_key
from osft.errors import EvaluationError, one_line
from osft.evaluation.answers import describe_document
from osft.evaluation.config import HOLDOUT_TASK, EvaluationConfig
from osft.evaluation.documents import set_seeds
from osft.evaluation.holdout import HoldoutTask
from osft.evaluation.identity import code_versions, task_fingerprint
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement
from osft.evaluation.metric_choice import choose_metric, is_higher_better
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import RequestedTask

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Part of every key. Raise it when the same answers would become another measurement than before."""


def measure(
    model: LazyModel,
    requested: Sequence[RequestedTask],
    config: EvaluationConfig,
    *,
    apply_chat_template: bool,
    store: MeasurementStore,
) -> dict[str, TaskMeasurement]:
    """Evaluate one model on all tasks; it is loaded only if a result is not kept yet.

    The tasks of a group are run together, as lm-eval batches them: one by one, mmlu's 57 would be padded much more.

    Args:
        model: the model, found whole.
        requested: the tasks, loaded.
        config: few-shot examples, limit, seed.
        apply_chat_template: whether prompts are formatted; the same for both models.
        store: where results are kept.

    Returns:
        The measurements by name of the task; groups are given as their tasks.

    Raises:
        EvaluationError: if the model cannot be loaded or a task cannot be run on it, or a score is not finite.
    """
    measurements: dict[str, TaskMeasurement] = {}
    versions = code_versions()
    for number, one in enumerate(requested, start=1):
        place = f"{model.label}: task {one.name} ({number} of {len(requested)})"
        keys = _measurement_keys(model, one, config, versions, apply_chat_template=apply_chat_template)
        kept = _take_all(store, keys)
        logger.info("%s%s", place, " is known" if kept else "")
        results = kept or _run(model, one, config, apply_chat_template=apply_chat_template)
        if not kept:
            for task, key in keys.items():
                store.keep(key, results[task])
        measurements |= results
    return measurements


def _measurement_keys(
    model: LazyModel,
    one: RequestedTask,
    config: EvaluationConfig,
    versions: Mapping[str, str],
    *,
    apply_chat_template: bool,
) -> dict[str, str]:
    """Return by task the hash of all that determines its result; none for a model whose weights are out of sight."""
    if model.fingerprint is None:
        return {}
    common = {
        "format": FORMAT_VERSION,
        "model": model.fingerprint,
        "model_runs": model.identity,
        # Padding, and with it the last digits of a score, depends on what shares a batch. Held-out rows are the same
        # under the name that they have as a permanent task.
        "together": [HOLDOUT_TASK if isinstance(task, HoldoutTask) else task.task_name for task in one.tasks],
        # Which metric counts depends on what the group joins.
        "joined": one.joined_metrics,
        "limit": config.limit,
        "chat_template": apply_chat_template,
        "seed": config.seed,
        "versions": dict(versions),
        "include_path": one.include_path_sha256,
    }
    return {task.task_name: content_key({**common, "task": task_fingerprint(task)}) for task in one.tasks}


def _take_all(store: MeasurementStore, keys: Mapping[str, str]) -> dict[str, TaskMeasurement] | None:
    """Return the results of all tasks, ``None`` if one is not kept."""
    taken: dict[str, TaskMeasurement] = {}
    for task, key in keys.items():
        if (measurement := store.take(key)) is None:
            return None
        taken[task] = replace(measurement, task=task)
    return taken or None


def _run(
    model: LazyModel, one: RequestedTask, config: EvaluationConfig, *, apply_chat_template: bool
) -> dict[str, TaskMeasurement]:
    """Ask the model every document of the tasks that a name stands for."""
    set_seeds(config.seed)
    for task in one.tasks:
        task.set_fewshot_seed(seed=config.seed)
    try:
        results = evaluate(
            lm=model.lm,
            task_dict={"tasks": {task.task_name: task for task in one.tasks}},
            limit=config.limit,
            apply_chat_template=apply_chat_template,
            # As lm-eval's own command does: an example is a turn of the user's and an answer of the assistant's.
            fewshot_as_multiturn=apply_chat_template,
            # lm-eval's own bootstrap of each model's error is of no use for paired scores, and slow.
            bootstrap_iters=0,
        )
    except EvaluationError:
        raise
    except Exception as error:  # a task's own code raises anything; nothing is hidden: the cause is named and chained
        raise EvaluationError(
            f"lm-eval failed on the {model.label} model '{model.source.name}', task '{one.name}': "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if results is None:
        raise EvaluationError(
            "lm-eval returned nothing on this process. Run the evaluation in one process, not torchrun; it uses every "
            "GPU that it sees."
        )
    return {task: _task_measurement(task, results, joined=one.joined_metrics, label=model.label) for task in one.leaves}


def _task_measurement(task: str, results: Mapping[str, Any], *, joined: Sequence[str], label: str) -> TaskMeasurement:
    """Return one task's result from lm-eval's dictionary of all."""
    values = {
        tuple(key.rsplit(",", 1)): value
        for key, value in results["results"][task].items()
        if "," in key and "_stderr," not in key
    }
    directions = results["higher_is_better"][task]
    metric, answer_filter = choose_metric(task, list(values), declared=directions, joined=joined)
    numbers = {
        name: float(value)
        for (name, its_filter), value in values.items()
        if its_filter == answer_filter and isinstance(value, int | float | np.number)
    }
    if metric not in numbers:
        raise EvaluationError(
            f"task '{task}': {metric} is no number for the {label} model. Give the task another metric."
        )
    value = _finite(numbers.pop(metric), task=task, metric=metric, label=label)
    samples = [sample for sample in results["samples"][task] if sample["filter"] == answer_filter]
    return TaskMeasurement(
        task=task,
        metric=metric,
        higher_is_better=is_higher_better(task, metric, directions),
        value=value,
        other_values=_other_values(numbers, task=task, label=label),
        documents=tuple(
            _document_measurement(sample, metric, task=task, label=label)
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ),
        version=str(results["versions"].get(task)),
        num_fewshot=int(results["n-shot"].get(task) or 0),
    )


def _other_values(values: Mapping[str, float], *, task: str, label: str) -> dict[str, float]:
    """Return the scores that are for information, without those that are no numbers for this model."""
    for metric, value in values.items():
        if not math.isfinite(value):
            logger.warning("%s: task '%s': %s is %s and is left out", label, task, metric, value)
    return {metric: value for metric, value in values.items() if math.isfinite(value)}


def _document_measurement(sample: Mapping[str, Any], metric: str, *, task: str, label: str) -> DocumentMeasurement:
    score, weight = _score_and_weight(sample.get(metric))
    place = f"{task}', document '{sample['doc_id']}"
    description = describe_document(sample, metric)
    return DocumentMeasurement(
        doc_id=sample["doc_id"],
        fingerprint=question_fingerprint(sample),
        score=None if score is None else _finite(score, task=place, metric=metric, label=label),
        weight=weight,
        prompt=description.prompt,
        gold=description.gold,
        answer=description.answer,
    )


def question_fingerprint(sample: Mapping[str, Any]) -> str:
    """Return one sha256 over a document, its right answer, and every request that was made of it.

    lm-eval's own hash of the prompt is of the first request alone: it misses other choices, and how long an answer
    may be.

    Args:
        sample: an entry of ``results["samples"][task]``.
    """
    asked = orjson.dumps(sample["arguments"], default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return sha256(f"{sample['doc_hash']}:{sample['target_hash']}:".encode() + asked).hexdigest()


def _score_and_weight(value: Any) -> tuple[float | None, float]:
    """Return a document's number and what it counts for; perplexities come as (log-likelihood, words or bytes)."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value), 1.0
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(one, int | float) for one in value):
        return float(value[0]), float(value[1])
    return None, 1.0


def _finite(value: Any, *, task: str, metric: str, label: str) -> float:
    if not math.isfinite(value):
        raise EvaluationError(
            f"task '{task}': {metric} is {value} for the {label} model. "
            "Its weights are broken, or the metric is not defined for these documents."
        )
    return float(value)
