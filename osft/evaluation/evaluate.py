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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from osft.errors import EvaluationError
from osft.evaluation.config import HOLDOUT_TASK, EvaluationConfig
from osft.evaluation.gate import judge
from osft.evaluation.harness import measure
from osft.evaluation.holdout import HoldoutTask, read_holdout
from osft.evaluation.measurement import TaskMeasurement
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import ModelSource, check_same_vocabulary, find_model
from osft.evaluation.pairing import DocumentPair, compare, document_pairs
from osft.evaluation.probe import compare_on_probe, read_probe, remember_on_probe
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.markdown import write_markdown
from osft.evaluation.report.page import write_html
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import RequestedTask, check_no_overlap, load_tasks
from osft.workspace import atomic_file, write_json

logger = logging.getLogger(__name__)

REPORT_NAME = "forgetting.json"
HTML_NAME = "report.html"
MARKDOWN_NAME = "report.md"
SAMPLES_NAME = "samples.jsonl"
BASELINE_NAME = "baseline.json"
CACHE_NAME = "measurements"
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

    Leaves ``forgetting.json``, ``report.html``, ``report.md`` and ``samples.jsonl`` (one document a line, with both
    answers) in ``output``; each appears whole or not at all.

    Args:
        base: folder (or Hub name, from the local cache when offline) of the model before training.
        tuned: the model after training. Its vocabulary must be the base model's.
        config: tasks and limits.
        output: a folder; it is created.
        cache: where measurements of models are kept; ``output/measurements`` if None.
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
    exam = _set_exam(config, base_source, cache or output / CACHE_NAME)
    _check_chat_templates(config, base_source, tuned_source)
    with LazyModel(base_source, config, label="base", memo=exam.cache) as model:
        if base_fingerprint and model.fingerprint != base_fingerprint:
            raise EvaluationError(
                f"base model '{base}' is not the one that was measured before the training: its files have changed "
                "since. Run again from a copy that stays as it is."
            )
        base_results = exam.measure(model)
        remembered = remember_on_probe(model, exam.probe, exam.cache) if exam.probe else None
    with LazyModel(tuned_source, config, label="tuned", memo=exam.cache) as model:
        tuned_results = exam.measure(model)
        probe = compare_on_probe(remembered, model, exam.probe, exam.cache) if remembered and exam.probe else None
    outcome = compare(exam.requested, base_results, tuned_results, seed=config.seed)
    verdict = judge(outcome, config)
    report = ForgettingReport(
        base=base,
        tuned=tuned,
        **{name: getattr(outcome, name) for name in type(outcome).__dataclass_fields__},
        probe=probe,
        passed=verdict.passed,
        reasons=verdict.reasons,
        settings=_settings(config, base_results, apply_chat_template=exam.apply_chat_template),
        versions=_versions(base_results),
        training=training or {},
        data=data or {},
    )
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
        cache: where measurements of models are kept; ``output/measurements`` if None.

    Raises:
        MissingPathError, DataError, ConfigError, EvaluationError: as :func:`evaluate_forgetting` does.
    """
    source = find_model(base, config)
    exam = _set_exam(config, source, cache or output / CACHE_NAME)
    with LazyModel(source, config, label="base", memo=exam.cache) as model:
        results = exam.measure(model)
        if exam.probe:
            remember_on_probe(model, exam.probe, exam.cache)
        fingerprint = model.fingerprint
    report = BaselineReport(
        base=base,
        fingerprint=fingerprint,
        scores={task: result.value for task, result in results.items()},
        documents={task: len(result.documents) for task, result in results.items()},
    )
    write_json(output / BASELINE_NAME, report)
    return report


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exam:
    """What every model is asked, loaded once."""

    config: EvaluationConfig
    requested: tuple[RequestedTask, ...]
    apply_chat_template: bool
    probe: tuple[tuple[int, ...], ...] | None
    """Token ids of the probe's documents."""

    cache: Path

    def measure(self, model: LazyModel) -> dict[str, TaskMeasurement]:
        return measure(
            model,
            self.requested,
            self.config,
            apply_chat_template=self.apply_chat_template,
            store=MeasurementStore(self.cache),
        )


def _set_exam(config: EvaluationConfig, base: ModelSource, cache: Path) -> _Exam:
    """Load all that is asked, and check it."""
    requested = (*load_tasks(config, cache=cache), *_holdout_tasks(config, base))
    check_no_overlap(requested)
    return _Exam(
        config=config,
        requested=requested,
        apply_chat_template=config.apply_chat_template and base.has_chat_template,
        probe=read_probe(config.probe, base.tokenizer) if config.probe else None,
        cache=cache,
    )


def _holdout_tasks(config: EvaluationConfig, base: ModelSource) -> tuple[RequestedTask, ...]:
    if config.holdout is None:
        return ()
    rows = read_holdout(config.holdout, vocabulary_size=base.vocabulary_size)
    task = HoldoutTask(rows, base.tokenizer)
    return (RequestedTask(name=HOLDOUT_TASK, asked_as=HOLDOUT_TASK, kind="target", item=task),)


def _check_chat_templates(config: EvaluationConfig, base: ModelSource, tuned: ModelSource) -> None:
    """Refuse two models that would not be asked the same prompts."""
    if not config.apply_chat_template:
        return
    if base.has_chat_template != tuned.has_chat_template:
        raise EvaluationError(
            f"only one of base '{base.name}' and tuned '{tuned.name}' has a chat template, so they cannot be asked the "
            "same prompts. Save the template with both, or set apply_chat_template to false."
        )
    if base.has_chat_template and _sample_prompt(base) != _sample_prompt(tuned):
        raise EvaluationError(
            f"the chat templates of base '{base.name}' and tuned '{tuned.name}' make different prompts of the same "
            "question. Save the base model's tokenizer with the tuned model, or set apply_chat_template to false."
        )


def _sample_prompt(source: ModelSource) -> str:
    conversation = [{"role": "user", "content": "a question"}]
    return str(source.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))


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


def _write(report: ForgettingReport, pairs: Sequence[DocumentPair], output: Path) -> None:
    with atomic_file(output / SAMPLES_NAME) as file:
        for pair in pairs:
            file.write(orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE))
    write_html(report, pairs, output / HTML_NAME)
    write_markdown(report, output / MARKDOWN_NAME)
    report.save(output / REPORT_NAME)
    logger.info("%s: %s", "passed" if report.passed else "not passed", " ".join(report.reasons))
