"""The forgetting evaluation from two models to a report on disk.

Everything that can be wrong with the input is checked before the first forward pass: both models' folders,
their vocabularies, the names and data of all tasks, the held-out rows.

One model is in memory at a time: the base model is measured whole and leaves before the tuned one is loaded. Results
are kept task by task, so a killed evaluation goes on where it was, and a known base model is not even loaded.
"""

import importlib.metadata
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.cumulative import CumulativeOutcome, compare_with_chain
from osft.evaluation.exam import check_chat_templates, set_exam
from osft.evaluation.forgetting import Outcome
from osft.evaluation.gate import judge
from osft.evaluation.measurement import TaskMeasurement, save_measurements
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import check_same_vocabulary, find_model
from osft.evaluation.pairing import DocumentPair, compare, document_pairs
from osft.evaluation.probe import compare_on_probe, remember_on_probe
from osft.evaluation.references import find_references, pair_with_references
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.markdown import write_markdown
from osft.evaluation.report.page import write_html
from osft.workspace import as_json, atomic_file, write_json

logger = logging.getLogger(__name__)

REPORT_NAME = "forgetting.json"
HTML_NAME = "report.html"
MARKDOWN_NAME = "report.md"
SAMPLES_NAME = "samples.jsonl"
BASELINE_NAME = "baseline.json"
CACHE_NAME = "cache"
MEASUREMENTS_NAME = "measurements"
"""Folder of what both models answered, as a promoted version keeps it: ``base/<task>.parquet``, ``tuned/...``."""

PACKAGES = ("lm-eval", "transformers", "torch", "datasets")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineReport:
    """What is known of the base model before the training: the content of ``baseline.json``."""

    base: str
    fingerprint: str | None
    """Hash of the model's files; None for one behind a server."""

    scores: Mapping[str, float]
    """lm-eval's score of each task."""

    documents: Mapping[str, int]


def evaluate_forgetting(
    base: str,
    tuned: str,
    config: EvaluationConfig,
    output: Path,
    *,
    cache: Path | None = None,
    base_fingerprint: str | None = None,
    training: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> ForgettingReport:
    """Measure what the tuned model lost and gained, and judge whether it may replace the base.

    Leaves ``forgetting.json``, ``report.html``, ``report.md``, ``samples.jsonl`` (one document a line, with both
    answers) and ``measurements/`` in ``output``; each file appears whole or not at all.

    Args:
        base: folder (or Hub name, from the local cache when offline) of the model before training.
        tuned: the model after training. Its vocabulary must be the base model's.
        config: tasks and limits.
        output: a folder; it is created.
        cache: where measurements of models are kept; ``output/cache`` if None.
        base_fingerprint: what the base model must be: :attr:`BaselineReport.fingerprint` of the step before the
            training; None takes it as it is.
        training: settings of the training, for the report.
        data: what is known of the training data, for the report.

    Returns:
        What ``forgetting.json`` holds.

    Raises:
        MissingPathError: if a model, ``include_path``, the holdout or the probe does not exist.
        DataError: if the held-out rows or the probe are empty or do not fit the vocabulary.
        ConfigError: if two task names stand for the same task.
        EvaluationError: if a task is unknown, a model is not whole or the base is another one than it was, or a score
            is not finite.
    """
    base_source, tuned_source = find_model(base, config), find_model(tuned, config)
    check_same_vocabulary(base_source, tuned_source)
    exam = set_exam(config, base_source, cache or output / CACHE_NAME)
    check_chat_templates(config, base_source, tuned_source)
    with LazyModel(base_source, config, label="base", memo=exam.cache) as model:
        if base_fingerprint and model.fingerprint != base_fingerprint:
            raise EvaluationError(
                f"base model '{base}' is not the one that was measured before the training: its files have changed "
                "since. Run again from a copy that stays as it is."
            )
        base_results = exam.measure(model)
        remembered = remember_on_probe(model, exam.probe, exam.cache) if exam.probe else None
    references = find_references(exam, base_results)
    with LazyModel(tuned_source, config, label="tuned", memo=exam.cache) as model:
        tuned_results = exam.measure(model)
        probe = compare_on_probe(remembered, model, exam.probe, exam.cache) if remembered and exam.probe else None
    outcome = compare(exam.requested, base_results, tuned_results, seed=config.seed)
    chain = None
    if references:
        candidates = pair_with_references(exam.requested, references, tuned_results)
        chain = compare_with_chain(candidates, seed=config.seed)
    verdict = judge(outcome, config, chain)
    report = ForgettingReport(
        base=base,
        tuned=tuned,
        **_fields(outcome),
        **(_fields(chain) if chain else {}),
        left_out_references=tuple(sentence for one in references for sentence in one.left_out),
        probe=probe,
        passed=verdict.passed,
        reasons=verdict.reasons,
        settings=_settings(config, base_results, apply_chat_template=exam.apply_chat_template),
        versions=_versions(base_results),
        training=training or {},
        data=data or {},
    )
    for name, results in (("base", base_results), ("tuned", tuned_results)):
        save_measurements(results, output / MEASUREMENTS_NAME / name)
    _write(report, list(document_pairs(exam.requested, base_results, tuned_results)), output)
    return report


def measure_baseline(base: str, config: EvaluationConfig, output: Path, *, cache: Path | None = None) -> BaselineReport:
    """Measure the base model alone, ahead of the training, and keep the results for the evaluation after it.

    A misspelt task, one whose data cannot be reached, or a limit that was taken too high ends the run here, before
    GPU hours are spent. Leaves ``baseline.json`` in ``output``.

    Args:
        base: as in :func:`evaluate_forgetting`.
        config: as in :func:`evaluate_forgetting`, with the same values.
        output: a folder; it is created.
        cache: where measurements of models are kept; ``output/cache`` if None.

    Raises:
        MissingPathError, DataError, ConfigError, EvaluationError: as :func:`evaluate_forgetting` does.
    """
    source = find_model(base, config)
    exam = set_exam(config, source, cache or output / CACHE_NAME)
    with LazyModel(source, config, label="base", memo=exam.cache) as model:
        results = exam.measure(model)
        if exam.probe:
            remember_on_probe(model, exam.probe, exam.cache)
        fingerprint = model.fingerprint
    # The origin is asked now if it has to be: one that is gone is found before the training, too.
    find_references(exam, results)
    report = BaselineReport(
        base=base,
        fingerprint=fingerprint,
        scores={task: result.value for task, result in results.items()},
        documents={task: len(result.documents) for task, result in results.items()},
    )
    write_json(output / BASELINE_NAME, report)
    return report


def _fields(outcome: Outcome | CumulativeOutcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in type(outcome).__dataclass_fields__}


def _settings(
    config: EvaluationConfig, base: Mapping[str, TaskMeasurement], *, apply_chat_template: bool
) -> dict[str, Any]:
    """Return the configuration as JSON, with what the tasks themselves decided."""
    settings: dict[str, Any] = as_json(config)
    return settings | {
        "chat_template_applied": apply_chat_template,
        "shots": {task: measurement.num_fewshot for task, measurement in base.items()},
    }


def _versions(base: Mapping[str, TaskMeasurement]) -> dict[str, Any]:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    tasks = {task: measurement.version for task, measurement in base.items()}
    return packages | {"python": platform.python_version(), "tasks": tasks}


def _write(report: ForgettingReport, pairs: Sequence[DocumentPair], output: Path) -> None:
    with atomic_file(output / SAMPLES_NAME) as file:
        for pair in pairs:
            file.write(orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE))
    write_html(report, pairs, output / HTML_NAME)
    write_markdown(report, output / MARKDOWN_NAME)
    report.save(output / REPORT_NAME)
    logger.info("%s: %s", "passed" if report.passed else "not passed", " ".join(report.reasons))
