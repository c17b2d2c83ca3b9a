"""A copy of the model on each GPU, each in a process of its own; lm-eval sees one model.

Every list of requests is dealt out in shards of equal length and put together again in order. Requests that share a
context stay together: lm-eval scores the one-token choices of a question in one pass. The answers are those of one
process, up to how batches are put together, which moves numbers in the last digits.

A worker that fails or is killed ends all of them with one error, and workers end when this process does.
"""

import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import loky
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from loky.process_executor import BrokenProcessPool

from osft.errors import EvaluationError, one_line
from osft.evaluation.models import watched
from osft.evaluation.models.hugging_face import HuggingFaceModel
from osft.evaluation.models.source import ModelSource
from osft.evaluation.models.watched import Progress, request_length

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
PARENT_CHECK_SECONDS = 1.0
"""How long a worker outlives a parent that was killed, at most."""


class ReplicatedModel(LM):
    """Hands requests to copies of one model."""

    # The same prompts as one process makes, system messages that a template refuses included.
    apply_chat_template = HFLM.apply_chat_template

    def __init__(self, source: ModelSource, *, label: str, batch_size: int | str, devices: Sequence[str]) -> None:
        """Load a copy on each device, side by side.

        Args:
            source: a model that was found whole.
            label: what log lines and errors call it: ``base`` or ``tuned``.
            batch_size: sequences in one forward pass of one copy, or ``"auto"``.
            devices: torch's names of them.

        Raises:
            EvaluationError: if the model cannot be loaded on one of them.
        """
        super().__init__()
        self.tokenizer = source.tokenizer
        self.chat_template_args: dict[str, Any] = {}
        self._label = label
        self._progress = Progress(label)
        self._folder = tempfile.TemporaryDirectory(prefix="osft-replicas-")
        counts = Path(self._folder.name) / "counts"
        self._counts = np.memmap(counts, dtype=np.int64, mode="w+", shape=(len(devices),))
        self._devices = tuple(devices)
        self._workers = [loky.ProcessPoolExecutor(1) for _ in devices]
        logger.info("%s: loading a copy on each of %s", label, ", ".join(devices))
        self._gather(
            [
                worker.submit(
                    _load, source, label, batch_size, device, _Slot(counts, number, len(devices)), os.getpid()
                )
                for number, (worker, device) in enumerate(zip(self._workers, devices, strict=True))
            ]
        )

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, as one process would give it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's template if one is asked for."""
        return self.tokenizer.chat_template if chat_template else None

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return ``(log-likelihood, is greedy)`` of each request's continuation."""
        return self._ask("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each request's whole text."""
        return self._ask("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the text that is generated for each request."""
        return self._ask("generate_until", requests)

    def loglikelihood_of_tokens(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return what :meth:`~osft.evaluation.models.watched.WatchedModel.loglikelihood_of_tokens` does."""
        return self._ask("loglikelihood_of_tokens", requests)

    def generate_from_tokens(self, requests: list[Instance]) -> list[str]:
        """Return what :meth:`~osft.evaluation.models.watched.WatchedModel.generate_from_tokens` does."""
        return self._ask("generate_from_tokens", requests)

    def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Return ``function(model, *args)`` from the first worker; all of it must be picklable."""
        return self._gather([self._workers[0].submit(_run, function, args)])[0]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.shutdown(wait=True, kill_workers=True)
        self._folder.cleanup()

    def _ask(self, method: str, requests: list[Instance]) -> list[Any]:
        """Return the answers of all workers, in the order of ``requests``."""
        self._progress.start(method, len(requests))
        self._counts[:] = 0
        shards = deal(requests, len(self._workers))
        # The caller has seeded this process for the task. With one seed for all, repeats of one request would be drawn
        # alike by all workers.
        seed = torch.initial_seed()
        parts = self._gather(
            [
                worker.submit(_answer, method, seed + place, [_light(requests[number]) for number in shard])
                for place, (worker, shard) in enumerate(zip(self._workers, shards, strict=True))
            ]
        )
        answers = {
            number: answer
            for shard, part in zip(shards, parts, strict=True)
            for number, answer in zip(shard, part, strict=True)
        }
        return [answers[number] for number in range(len(requests))]

    def _gather(self, futures: Sequence[Future[Result]]) -> list[Result]:
        """Wait for all workers; the first that fails ends them all."""
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=watched.PROGRESS_SECONDS, return_when=FIRST_EXCEPTION)
            failed = next((future for future in done if future.exception() is not None), None)
            if failed is not None:
                error = failed.exception()
                device = self._devices[futures.index(failed)]
                self.close()
                raise self._explain(error, device) from error
            self._progress.reach(int(self._counts.sum()))
        return [future.result() for future in futures]

    def _explain(self, error: BaseException | None, device: str) -> EvaluationError:
        if isinstance(error, EvaluationError):
            return error
        if isinstance(error, BrokenProcessPool):
            return EvaluationError(
                f"the {self._label} model's process on {device} was killed, most likely because memory ran out. "
                "Give the step more memory, or a smaller batch_size."
            )
        return EvaluationError(
            f"the {self._label} model failed on {device}: {type(error).__name__}: {one_line(error or Exception())}"
        )


def deal(requests: Sequence[Instance], num_shards: int) -> list[list[int]]:
    """Return places in ``requests`` for each shard: equal in length, with equal contexts together.

    Sorted by length and dealt in turn, so that every shard has long and short ones.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        context = request.args[0] if request.request_type == "loglikelihood" else ""
        groups[context or number].append(number)
    lengths = {key: sum(request_length(requests[number]) for number in group) for key, group in groups.items()}
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    for turn, key in enumerate(sorted(groups, key=lambda key: (-lengths[key], groups[key]))):
        shards[turn % num_shards].extend(groups[key])
    return shards


class _Slot:
    """Where one worker writes how far it is."""

    def __init__(self, file: Path, number: int, size: int) -> None:
        self.file, self.number, self.size = file, number, size


class _SharedProgress(Progress):
    """Progress that another process reads."""

    def __init__(self, label: str, slot: _Slot) -> None:
        super().__init__(label)
        self._counts = np.memmap(slot.file, dtype=np.int64, mode="r+", shape=(slot.size,))
        self._number = slot.number

    def reach(self, num_done: int) -> None:
        """Write how far it is; the other process says it."""
        self.num_done = num_done
        self._counts[self._number] = num_done


class _Worker:
    """In a worker, its copy of the model."""

    model: HuggingFaceModel


def _load(source: ModelSource, label: str, batch_size: int | str, device: str, slot: _Slot, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    _Worker.model = HuggingFaceModel(
        source, label=label, batch_size=batch_size, device=device, progress=_SharedProgress(label, slot)
    )


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed one cannot tell."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _answer(method: str, seed: int, requests: list[Instance]) -> list[Any]:
    torch.manual_seed(seed)
    return getattr(_Worker.model, method)(requests) if requests else []


def _run(function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    return _Worker.model.run(function, *args)


def _light(request: Instance) -> Instance:
    """Return a request without its document, which may be large, but for what an error names."""
    doc = {key: request.doc[key] for key in ("row",) if isinstance(request.doc, dict) and key in request.doc}
    return replace(request, doc=doc, resps=[], filtered_resps={})
