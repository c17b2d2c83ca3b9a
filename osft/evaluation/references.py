"""The versions before the tuned model, with what each of them answered.

A promoted version keeps its answers beside its weights, document by document, and they stay when the weights are
removed: so the tuned model is paired with all of them and none is loaded. Only the origin may be: for a task that was
not asked yet when the chain began.

Answers count only if they are to the questions that are asked now. A task whose documents, prompts, right answers or
metric have changed since is left out for that version, and the report says so: a number on other questions is no
reference. A version that was never asked a task says nothing of it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.cumulative import ORIGIN
from osft.evaluation.exam import Exam
from osft.evaluation.measurement import TaskMeasurement, measurement_path
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import check_same_vocabulary, find_model
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.pairing import Measurements, pair
from osft.evaluation.tasks import RequestedTask

logger = logging.getLogger(__name__)

BASE = "base"
"""What the base is called where it is no version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What one version answered, of what is asked now."""

    version: str
    measurements: Measurements
    """By name of the task; a group's tasks are all there or none is."""

    left_out: tuple[str, ...] = ()
    """A sentence for each task whose answers are to other questions."""

    def knows(self, one: RequestedTask) -> bool:
        """Return whether the version was asked this."""
        return all(leaf in self.measurements for leaf in one.leaves)


def find_references(exam: Exam, base: Measurements) -> tuple[Reference, ...]:
    """Return the versions that the tuned model descends from, oldest first and the base last; none without a chain.

    Args:
        exam: what is asked; its configuration names the folders and the origin.
        base: what the base answered now, which all others are held against.

    Raises:
        MissingPathError: if the origin has to be asked and does not exist.
        EvaluationError: if a file of answers is damaged, or the origin cannot be asked.
    """
    config = exam.config
    if not config.has_chain:
        return ()
    retention = [one for one in exam.requested if one.kind == "retention"]
    references = read_references(config, retention, base)
    if config.origin is not None:
        kept = next((one for one in references if one.version == ORIGIN), Reference(version=ORIGIN, measurements={}))
        others = [one for one in references if one.version != ORIGIN]
        asked = [one for one in retention if one.asked_as in config.tasks and not kept.knows(one)]
        references = [_ask_origin(exam, config.origin, kept, asked, base) if asked else kept, *others]
    for sentence in (sentence for reference in references for sentence in reference.left_out):
        logger.warning("%s", sentence)
    return (*references, Reference(version=config.base_version or BASE, measurements=base))


def read_references(
    config: EvaluationConfig, retention: Sequence[RequestedTask], base: Measurements
) -> list[Reference]:
    """Return what the versions before the base left behind, oldest first.

    Args:
        config: names their folders.
        retention: the tasks that are asked now.
        base: what the base answered now.

    Raises:
        EvaluationError: if a file of answers is damaged.
    """
    return [
        _read_reference(version, folder, retention, base)
        for version, folder in config.ancestor_measurements.items()
        if version != config.base_version
    ]


def pair_with_references(
    requested: Sequence[RequestedTask], references: Sequence[Reference], tuned: Measurements
) -> Iterator[dict[str, PairedTask]]:
    """Yield, for each retention task, the tuned model's pair with every version that is known on it, oldest first.

    Args:
        requested: what was asked.
        references: as :func:`find_references` gives them; the last is the base, which is known on every task.
        tuned: the tuned model's measurements.
    """
    for one in requested:
        if one.kind == "retention":
            pairs = {
                reference.version: {
                    paired.label.task: replace(paired, label=replace(paired.label, secondary=()))
                    for paired in pair(one, reference.measurements, tuned)
                }
                for reference in references
                if reference.knows(one)
            }
            for task in pairs[references[-1].version]:
                yield {version: by_task[task] for version, by_task in pairs.items() if task in by_task}


def _read_reference(name: str, folder: Path, retention: Sequence[RequestedTask], base: Measurements) -> Reference:
    """Return what a version left behind."""
    version = ORIGIN if name == ORIGIN_VERSION else name
    if not folder.is_dir():
        sentence = f"Nothing is compared with {version}: it left no answers behind ({folder})."
        return Reference(version=version, measurements={}, left_out=(sentence,))
    found = {}
    for leaf in (leaf for one in retention for leaf in one.leaves):
        path = measurement_path(folder, leaf)
        if path.is_file():
            found[leaf] = TaskMeasurement.load(path)
    return _comparable(Reference(version=version, measurements=found), retention, base)


def _ask_origin(
    exam: Exam, origin: str, kept: Reference, asked: Sequence[RequestedTask], base: Measurements
) -> Reference:
    """Return the origin's reference with what it was not asked, or asked otherwise, when the chain began."""
    source = find_model(origin, exam.config)
    check_same_vocabulary(exam.base, source)
    if exam.apply_chat_template and not source.has_chat_template:
        names = ", ".join(one.name for one in asked)
        sentence = f"{names} is not compared with the {ORIGIN}: '{origin}' has no chat template, and the base has one."
        return replace(kept, left_out=(*kept.left_out, sentence))
    with LazyModel(source, exam.config, label=ORIGIN, memo=exam.cache) as model:
        answers = exam.measure(model, asked)
    answered = _comparable(Reference(version=ORIGIN, measurements=answers), asked, base)
    return replace(answered, measurements={**kept.measurements, **answered.measurements})


def _comparable(reference: Reference, retention: Sequence[RequestedTask], base: Measurements) -> Reference:
    """Return the reference without the tasks that are asked otherwise now."""
    kept: dict[str, TaskMeasurement] = {}
    left_out: list[str] = []
    for one in retention:
        found = {leaf: reference.measurements[leaf] for leaf in one.leaves if leaf in reference.measurements}
        if not found:
            continue
        reasons = (_difference(found.get(leaf), base[leaf]) for leaf in one.leaves)
        reason = next((reason for reason in reasons if reason), None)
        if reason:
            left_out.append(f"{one.name} is not compared with {reference.version}: {reason}.")
        else:
            kept |= found
    return replace(reference, measurements=kept, left_out=tuple(left_out))


def _difference(then: TaskMeasurement | None, now: TaskMeasurement) -> str | None:
    """Return what is asked otherwise now than then, None if nothing is."""
    if then is None:
        return f"it was not asked {now.task}"
    if (then.metric, then.higher_is_better) != (now.metric, now.higher_is_better):
        return f"{now.task} was scored by {then.metric} then, and is by {now.metric} now"
    if len(then.documents) != len(now.documents):
        return f"{now.task} had {len(then.documents)} documents then, and has {len(now.documents)} now"
    for before, after in zip(then.documents, now.documents, strict=True):
        if (before.doc_id, before.fingerprint) != (after.doc_id, after.fingerprint):
            return f"document {after.doc_id} of {now.task} is another one now, or is asked otherwise"
    return None
