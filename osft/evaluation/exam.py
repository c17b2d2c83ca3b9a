"""What every model of an evaluation is asked: the tasks, the held-out rows and the probe, loaded and checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from osft.errors import EvaluationError
from osft.evaluation.config import HOLDOUT_TASK, EvaluationConfig
from osft.evaluation.forgetting import Kind
from osft.evaluation.harness import measure
from osft.evaluation.holdout import HoldoutTask, read_holdout
from osft.evaluation.measurement import TaskMeasurement
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import ModelSource
from osft.evaluation.probe import read_probe
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import RequestedTask, check_no_overlap, load_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """What every model is asked, loaded once."""

    config: EvaluationConfig
    base: ModelSource
    requested: tuple[RequestedTask, ...]
    apply_chat_template: bool
    probe: tuple[tuple[int, ...], ...] | None
    """Token ids of the probe's documents."""

    cache: Path

    def measure(
        self, model: LazyModel, requested: Sequence[RequestedTask] | None = None
    ) -> Mapping[str, TaskMeasurement]:
        """Return what a model answers, as far as possible from the cache.

        Args:
            model: the model.
            requested: a part of what is asked; None: all of it.
        """
        return measure(
            model,
            self.requested if requested is None else requested,
            self.config,
            apply_chat_template=self.apply_chat_template,
            store=MeasurementStore(self.cache),
        )


def set_exam(config: EvaluationConfig, base: ModelSource, cache: Path) -> Exam:
    """Load all that is asked, and check it.

    Args:
        config: tasks, rows and probe.
        base: the base model, whose tokenizer and vocabulary the rows have to fit.
        cache: where measurements and the index of lm-eval's tasks are kept.

    Raises:
        MissingPathError: if ``include_path``, held-out rows or the probe do not exist.
        DataError: if held-out rows or the probe are empty or do not fit the vocabulary.
        ConfigError: if two task names stand for the same task.
        EvaluationError: if a task is unknown or cannot be loaded.
    """
    requested = (*load_tasks(config, cache=cache), *_holdout_tasks(config, base))
    check_no_overlap(requested)
    return Exam(
        config=config,
        base=base,
        requested=requested,
        apply_chat_template=config.apply_chat_template and base.has_chat_template,
        probe=read_probe(config.probe, base.tokenizer) if config.probe else None,
        cache=cache,
    )


def check_chat_templates(config: EvaluationConfig, base: ModelSource, tuned: ModelSource) -> None:
    """Refuse two models that would not be asked the same prompts.

    Raises:
        EvaluationError: if only one has a template, or theirs differ.
    """
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


def _holdout_tasks(config: EvaluationConfig, base: ModelSource) -> list[RequestedTask]:
    """Return the rows that earlier versions held out, which must be kept, then those of the new data."""
    rows: list[tuple[str, Kind, Path]] = [(name, "retention", path) for name, path in config.earlier_holdouts.items()]
    if config.holdout is not None:
        rows.append((HOLDOUT_TASK, "target", config.holdout))
    return [
        RequestedTask(
            name=name,
            asked_as=name,
            kind=kind,
            item=HoldoutTask(read_holdout(path, vocabulary_size=base.vocabulary_size), base.tokenizer, name=name),
        )
        for name, kind, path in rows
    ]


def _sample_prompt(source: ModelSource) -> str:
    conversation = [{"role": "user", "content": "a question"}]
    return str(source.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
