"""The forgetting evaluation from two models to a report on disk.

Everything that can be wrong with the input is checked before the first forward pass: both models' folders,
their vocabularies, the names and data of all tasks, the held-out rows.
"""

import importlib.metadata
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from osft.errors import EvaluationError
from osft.evaluation.config import HOLDOUT_TASK, EvaluationConfig
from osft.evaluation.forgetting import judge
from osft.evaluation.harness import TaskMeasurement, compare, measure
from osft.evaluation.holdout import HoldoutTask, read_holdout
from osft.evaluation.model import ModelSource, check_same_vocabulary, find_model
from osft.evaluation.report import DocumentPair, ForgettingReport, write_html
from osft.evaluation.tasks import RequestedTask, load_tasks
from osft.workspace import atomic_file

logger = logging.getLogger(__name__)

REPORT_NAME = "forgetting.json"
HTML_NAME = "report.html"
SAMPLES_NAME = "samples.jsonl"
PACKAGES = ("lm-eval", "transformers", "torch", "datasets")


def evaluate_forgetting(config: EvaluationConfig, output: Path) -> ForgettingReport:
    """Measure what the tuned model lost and gained, and judge whether it may replace the base.

    Leaves ``forgetting.json``, ``report.html`` and ``samples.jsonl`` (one document a line, with both answers) in
    ``output``; each appears whole or not at all.

    Args:
        config: models, tasks and limits.
        output: a folder; it is created.

    Returns:
        What ``forgetting.json`` holds.

    Raises:
        MissingPathError: if a model, ``include_path`` or the holdout does not exist.
        DataError: if the held-out rows are empty or do not fit the vocabulary.
        ConfigError: if two task names stand for the same task.
        EvaluationError: if a task is unknown, a model is not whole, or a score is not finite.
    """
    base_source, tuned_source = find_model(config.base), find_model(config.tuned)
    check_same_vocabulary(base_source, tuned_source)
    requested = (*load_tasks(config), *_holdout_tasks(config, base_source))
    apply_chat_template = _applies_chat_template(config, base_source, tuned_source)
    base, tuned = (
        measure(source, requested, config, label=label, apply_chat_template=apply_chat_template)
        for label, source in (("base", base_source), ("tuned", tuned_source))
    )
    comparisons = compare(requested, base, tuned, seed=config.seed)
    verdict = judge(comparisons, max_forgetting=config.max_forgetting, min_target_gain=config.min_target_gain)
    report = ForgettingReport(
        tasks=comparisons,
        forgetting=verdict.forgetting,
        target_gain=verdict.target_gain,
        passed=verdict.passed,
        reasons=verdict.reasons,
        settings=_settings(config, base, apply_chat_template=apply_chat_template),
        versions=_versions(base),
    )
    pairs = list(_document_pairs(requested, base, tuned))
    _write_samples(output / SAMPLES_NAME, pairs)
    write_html(report, pairs, output / HTML_NAME)
    report.save(output / REPORT_NAME)
    logger.info("forgetting %.4f, target gain %s, passed %s", report.forgetting, report.target_gain, report.passed)
    return report


def _holdout_tasks(config: EvaluationConfig, base: ModelSource) -> tuple[RequestedTask, ...]:
    if config.holdout is None:
        return ()
    rows = read_holdout(config.holdout, vocabulary_size=base.vocabulary_size)
    task = HoldoutTask(rows, decode=lambda ids: str(base.tokenizer.decode(ids)))
    return (RequestedTask(name=HOLDOUT_TASK, kind="target", item=task),)


def _applies_chat_template(config: EvaluationConfig, base: ModelSource, tuned: ModelSource) -> bool:
    """Return whether prompts are formatted: asked for, and both tokenizers can."""
    if not config.apply_chat_template:
        return False
    if base.has_chat_template != tuned.has_chat_template:
        raise EvaluationError(
            f"only one of base '{base.name}' and tuned '{tuned.name}' has a chat template, so they cannot be asked the "
            "same prompts. Save the template with both, or set apply_chat_template to false."
        )
    return base.has_chat_template


def _settings(
    config: EvaluationConfig, base: Mapping[str, TaskMeasurement], *, apply_chat_template: bool
) -> dict[str, Any]:
    """Return the configuration as JSON, with what the tasks themselves decided."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    return settings | {
        "chat_template_applied": apply_chat_template,
        "shots": {task: measurement.num_fewshot for task, measurement in base.items()},
    }


def _versions(base: Mapping[str, TaskMeasurement]) -> dict[str, Any]:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    tasks = {task: measurement.version for task, measurement in base.items()}
    return packages | {"python": platform.python_version(), "tasks": tasks}


def _document_pairs(
    requested: Iterable[RequestedTask], base: Mapping[str, TaskMeasurement], tuned: Mapping[str, TaskMeasurement]
) -> Iterable[DocumentPair]:
    """Yield every document with both answers, in the order of the tasks."""
    for one in requested:
        for leaf in one.leaves:
            for before, after in zip(base[leaf].documents, tuned[leaf].documents, strict=True):
                yield DocumentPair(
                    task=leaf,
                    doc_id=before.doc_id,
                    base_score=before.score,
                    tuned_score=after.score,
                    change=_change(before.score, after.score, higher_is_better=base[leaf].higher_is_better),
                    prompt=before.prompt,
                    gold=before.gold,
                    base_answer=before.answer,
                    tuned_answer=after.answer,
                )


def _change(before: float | None, after: float | None, *, higher_is_better: bool) -> float | None:
    if before is None or after is None:
        return None
    return after - before if higher_is_better else before - after


def _write_samples(path: Path, pairs: Iterable[DocumentPair]) -> None:
    with atomic_file(path) as file:
        for pair in pairs:
            file.write(orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE))
