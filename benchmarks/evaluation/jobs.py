"""One measurement of ``benchmarks/evaluation/`` in a process of its own.

``python -m benchmarks.evaluation.jobs JOB MATERIAL SCALE ROUNDS OUTPUT``, where :mod:`benchmarks.evaluation.worker`
starts it. What the job imports is imported before any clock starts. ``OUTPUT`` receives what was measured, as JSON.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from benchmarks.data.worker import MeasurementError, peak_bytes_of_this_process
from benchmarks.evaluation.material import SCALES, Material
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting, measure_baseline
from osft.evaluation.harness import measure
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import ModelSource, find_model
from osft.evaluation.pairing import compare
from osft.evaluation.statistics import Scores
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import RequestedTask, load_tasks
from osft.logs import configure_logging
from osft.workspace import write_json

Measured = Mapping[str, Sequence[float]]
"""Numbers by what they are, in the order of the rounds."""

BATCH_SIZE = 16
WARM_UP_DOCUMENTS = 4
CHOICES = 4
# What the models of the statistics get right, and how often the tuned one differs.
BASE_ACCURACY, CHANGED_SHARE = 0.6, 0.1
SEED = 42


def main() -> None:
    """Do the job that the command line names."""
    configure_logging()
    job, material, scale_name, rounds, output = sys.argv[1:]
    write_json(Path(output), JOBS[job](Material(Path(material)), scale_name, int(rounds)))


def measure_overhead(material: Material, scale_name: str, rounds: int) -> Measured:
    """Time our evaluation of one model and plain lm-eval's on the same tasks, in turns.

    Both begin with a model's folder and loaded tasks, and end with all results; each loads the weights. lm-eval is
    asked by ``evaluate``: what ``simple_evaluate`` adds, a description of the machine, takes seconds.
    """
    del scale_name
    config = timed_config(material)
    requested = load_tasks(config)
    source = find_model(str(material.timed_model), config)
    warm_up = timed_config(material, limit=WARM_UP_DOCUMENTS)
    for run in (run_ours, run_plain):
        run(source, requested, warm_up)
    seconds: dict[Callable[..., tuple[float, int]], list[float]] = {run_ours: [], run_plain: []}
    documents = set()
    for number in range(rounds):
        for run in (run_ours, run_plain) if number % 2 else (run_plain, run_ours):
            taken, num_documents = run(source, requested, config)
            seconds[run].append(taken)
            documents.add(num_documents)
    if len(documents) > 1:
        raise MeasurementError(f"{sorted(documents)} documents came out. Times compare for equal work only.")
    return {"ours": seconds[run_ours], "plain": seconds[run_plain], "documents": list(documents)}


def timed_config(material: Material, *, limit: int | None = None) -> EvaluationConfig:
    """Return what is asked where time is measured beside plain lm-eval."""
    return EvaluationConfig(
        tasks=("choices", "generation", "subjects"), include_path=material.tasks, batch_size=BATCH_SIZE, limit=limit
    )


def run_ours(source: ModelSource, requested: Sequence[RequestedTask], config: EvaluationConfig) -> tuple[float, int]:
    """Return the seconds of our evaluation, nothing being known yet, and the number of documents."""
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        start = time.perf_counter()
        with LazyModel(source, config, label="base", memo=cache) as model:
            store = MeasurementStore(cache)
            found = measure(model, requested, config, apply_chat_template=config.apply_chat_template, store=store)
            # Before the model is closed: lm-eval leaves that to the end of its process.
            seconds = time.perf_counter() - start
    return seconds, sum(len(one.documents) for one in found.values())


def run_plain(source: ModelSource, requested: Sequence[RequestedTask], config: EvaluationConfig) -> tuple[float, int]:
    """Return the seconds of lm-eval's own evaluation of all tasks at once, and the number of documents."""
    gc.collect()
    tasks = {task.task_name: task for one in requested for task in one.tasks}
    groups = {one.item.name: one.item for one in requested if isinstance(one.item, Group)}
    start = time.perf_counter()
    lm = HFLM(
        pretrained=source.name,
        tokenizer=source.tokenizer,
        backend="causal",
        device="cpu",
        dtype="float32",
        batch_size=config.batch_size,
    )
    results = evaluate(
        lm=lm,
        task_dict={"tasks": tasks, "groups": groups},
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        bootstrap_iters=0,
        log_samples=True,
    )
    seconds = time.perf_counter() - start
    return seconds, sum(len(samples) for samples in results["samples"].values())


class Guesser(LM):
    """Answers at once and always the same: it fills a store with as many documents as asked, without a model's time."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return a log-likelihood that only the answer's length decides."""
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return a log-likelihood that only the text's length decides."""
        return [-float(len(request.args[0])) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return empty texts."""
        return ["" for _ in requests]


class GuessedModel(LazyModel):
    """A model of which all is true but its answers, which are guessed."""

    @property
    def lm(self) -> Guesser:
        """The guesser; no weights are loaded."""
        return Guesser()


def known_config(material: Material) -> EvaluationConfig:
    """Return what the known model was asked; without a chat template, which a guesser does not have."""
    return EvaluationConfig(tasks=("known",), include_path=material.tasks, apply_chat_template=False)


def fill_store(material: Material, scale_name: str, rounds: int) -> Measured:
    """Keep results of the base model, and remember the hashes of its files."""
    del scale_name, rounds
    config = known_config(material)
    with GuessedModel(find_model(str(material.base), config), config, label="base", memo=cache_of(material)) as model:
        store = MeasurementStore(cache_of(material))
        found = measure(model, load_tasks(config), config, apply_chat_template=False, store=store)
    prompts = [len(document.prompt.encode()) for one in found.values() for document in one.documents]
    return {"prompt_bytes": [sum(prompts) / len(prompts)]}


def measure_known(material: Material, scale_name: str, rounds: int) -> Measured:
    """Time what an evaluation of a known model takes, step by step."""
    del scale_name, rounds
    config = known_config(material)
    times = [time.perf_counter()]
    source = find_model(str(material.base), config)
    times.append(time.perf_counter())
    requested = load_tasks(config)
    times.append(time.perf_counter())
    with LazyModel(source, config, label="base", memo=cache_of(material)) as model:
        store = MeasurementStore(cache_of(material))
        found = measure(model, requested, config, apply_chat_template=False, store=store)
    times.append(time.perf_counter())
    find_seconds, load_seconds, measure_seconds = np.diff(times).tolist()
    return {
        "find_seconds": [find_seconds],
        "load_seconds": [load_seconds],
        "measure_seconds": [measure_seconds],
        "documents": [sum(len(one.documents) for one in found.values())],
    }


def cache_of(material: Material) -> Path:
    """Return where results of the known model are kept."""
    return material.root / "cache"


def measure_memory_of_one(material: Material, scale_name: str, rounds: int) -> Measured:
    """Evaluate one large model, and return the memory that it took."""
    del scale_name, rounds
    with tempfile.TemporaryDirectory() as folder:
        measure_baseline(str(material.base), memory_config(material), Path(folder))
    return {"peak_bytes": [peak_bytes_of_this_process()]}


def measure_memory_of_two(material: Material, scale_name: str, rounds: int) -> Measured:
    """Evaluate two large models and compare them, and return the memory that it took."""
    del scale_name, rounds
    with tempfile.TemporaryDirectory() as folder:
        evaluate_forgetting(str(material.base), str(material.tuned), memory_config(material), Path(folder))
    return {"peak_bytes": [peak_bytes_of_this_process()]}


def memory_config(material: Material) -> EvaluationConfig:
    """Return what is asked where memory is measured: two full batches."""
    return EvaluationConfig(
        tasks=("choices",), include_path=material.tasks, batch_size=BATCH_SIZE, limit=2 * BATCH_SIZE // CHOICES
    )


def measure_statistics(material: Material, scale_name: str, rounds: int) -> Measured:
    """Time the comparison of two models on many tasks, for each kind of score."""
    scale = SCALES[scale_name]
    names = tuple(f"known_{number:02d}" for number in range(scale.known_tasks))
    requested = load_tasks(EvaluationConfig(tasks=names, include_path=material.tasks))
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS_OF_SCORES}
    for kind, make_scores in KINDS_OF_SCORES.items():
        draw = np.random.default_rng(SEED)
        base, tuned = ({}, {})
        for name in names:
            before, after = make_scores(draw, scale.known_documents)
            base[name], tuned[name] = task_measurement(name, before), task_measurement(name, after)
        for _ in range(rounds):
            start = time.perf_counter()
            compare(requested, base, tuned, seed=SEED)
            seconds[kind].append(time.perf_counter() - start)
    return seconds


def right_or_wrong(draw: np.random.Generator, documents: int) -> tuple[Scores, Scores]:
    """Return scores ``[documents]`` of two models that differ in some documents: 0 and 1."""
    base = draw.random(documents) < BASE_ACCURACY
    return base.astype(float), (base ^ (draw.random(documents) < CHANGED_SHARE)).astype(float)


def shares(draw: np.random.Generator, documents: int) -> tuple[Scores, Scores]:
    """Return scores ``[documents]`` of two models that differ in all documents: from 0 to 1."""
    base = draw.random(documents)
    return base, (base + CHANGED_SHARE * draw.standard_normal(documents)).clip(0, 1)


KINDS_OF_SCORES = {"right_or_wrong": right_or_wrong, "shares": shares}


def task_measurement(task: str, scores: Scores) -> TaskMeasurement:
    """Return what measuring ``task`` would have given with these scores of its documents, ``[documents]``."""
    documents = tuple(
        DocumentMeasurement(doc_id=number, fingerprint=str(number), score=score, prompt="", gold="", answer="")
        for number, score in enumerate(scores.tolist())
    )
    return TaskMeasurement(
        task=task,
        metric="acc",
        higher_is_better=True,
        value=float(scores.mean()),
        other_values={},
        documents=documents,
        version="1.0",
        num_fewshot=0,
    )


JOBS: dict[str, Callable[[Material, str, int], Measured]] = {
    "overhead": measure_overhead,
    "fill": fill_store,
    "known": measure_known,
    "memory-of-one": measure_memory_of_one,
    "memory-of-two": measure_memory_of_two,
    "statistics": measure_statistics,
}


if __name__ == "__main__":
    main()
