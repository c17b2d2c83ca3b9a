"""The documents of a task, drawn once and from a seed.

Some tasks shuffle answers or rows in their ``process_docs`` (gpqa, metabench's permuted tasks). lm-eval 0.4.13 calls it
when it makes the task, before any seed is set, and again whenever it looks at the documents: as it asks them, as it
scores them, as it counts them. What is scored may then not be what was asked, and two processes ask different prompts.

So a task's documents are made once, from a seed that does not depend on the tasks before it. The cache of ``datasets``
is left aside meanwhile: it would give back what was drawn with another seed. A draw that the seed does not
govern is another task by its fingerprint (:mod:`osft.evaluation.identity`), and is measured anew.
"""

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval.api.task import Task

SOURCES = ("training_docs", "validation_docs", "test_docs", "fewshot_docs")
"""The methods of a task that make documents; all others of lm-eval call one of these."""


def set_seeds(seed: int) -> None:
    """Seed the random numbers of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run what is inside from the seed, and leave random numbers as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_seeds(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def draw_documents(task: Task, seed: int) -> None:
    """Make the documents that a task asks, and its examples if it has shots; from now on it has these.

    Args:
        task: loaded, with its number of examples set.
        seed: each source of documents begins from it, so that examples from the split that is asked are the same
            documents, and a document is not its own example.
    """
    for name in SOURCES:
        setattr(task, name, _once(getattr(task, name), seed))
    # The sampler got its examples when the task was made.
    if task.get_config("num_fewshot") and hasattr(task, "sampler"):
        task.sampler.replace_df(list(task.fewshot_docs()))


def _once(source: Callable[[], Iterable[Any] | None], seed: int) -> Callable[[], Iterable[Any] | None]:
    """Return ``source`` as a function that is run once."""

    @functools.cache
    def documents() -> Iterable[Any] | None:
        with seeded(seed), _without_cache():
            rows = source()
            # An iterator would be empty the second time.
            return rows if rows is None or isinstance(rows, datasets.Dataset | Sequence) else list(rows)

    return documents


@contextmanager
def _without_cache() -> Iterator[None]:
    was_enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_caching()
