"""The probe's documents as windows that go through a model at once, in the same batches for both models.

A long document is cut into windows that do not overlap, and the first token of a window is not predicted. Where a
document begins with the token that all texts of the model begin with, every one of its windows does.

The batches are those of the training: like lengths together, padded on the right. They follow from the lengths alone,
so that a model compared with itself computes the same bits twice.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from osft.data.samples import Sample
from osft.data.validation.rows import IGNORED_LABEL
from osft.evaluation.models.watched import Progress
from osft.training.batches import MicroBatch, collate, micro_batches
from osft.training.loss import Logits

WINDOW_TOKENS = 1024
"""Longest window; shorter where the model's own is."""

BATCH_TOKENS = 2048
"""Most tokens of a batch, padding included: enough for a GPU, and all logits of a batch still fit beside a model."""


def longest_window(model: PreTrainedModel) -> int:
    """Return the tokens of the longest window that ``model`` is given."""
    # Not every family has a longest sequence, and transformers gives those that have none no such attribute.
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(WINDOW_TOKENS, longest or WINDOW_TOKENS)


def cut_into_windows(
    documents: Sequence[Sequence[int]], *, window_tokens: int, first_token: int | None
) -> list[Sample]:
    """Return the windows of all documents in the order of :func:`batches`, ``row`` the number of the document.

    Args:
        documents: token ids, at least two each.
        window_tokens: longest window, at least 2.
        first_token: what texts of the model begin with, if anything; a window that follows begins with it too if its
            document does.
    """
    windows = [
        Sample(input_ids=ids, labels=ids, row=number)
        for number, document in enumerate(documents)
        for ids in _windows(np.array(document, dtype=np.int32), window_tokens, first_token)
    ]
    return [windows[index] for group in _groups(windows) for index in group]


def _windows(ids: np.ndarray, window_tokens: int, first_token: int | None) -> Iterator[np.ndarray]:
    """Yield the windows of one document that predict anything."""
    prefix = ids[:1] if ids[0] == first_token else ids[:0]
    size = window_tokens - len(prefix)
    for start in range(len(prefix), len(ids), size):
        window = np.concatenate([prefix, ids[start : start + size]])
        if len(window) >= 2:
            yield window


def _groups(windows: Sequence[Sample]) -> list[list[int]]:
    lengths = np.array([len(window.input_ids) for window in windows], dtype=np.int64)
    return micro_batches(lengths, BATCH_TOKENS, packed=False)


def batches(windows: Sequence[Sample], device: torch.device, *, label: str) -> Iterator[MicroBatch]:
    """Yield the batches of ``windows`` on ``device``, and log how far they are.

    Args:
        windows: as :func:`cut_into_windows` returns them.
        device: of the model.
        label: what log lines call the model.
    """
    progress = Progress(label)
    progress.start("the probe", len(windows))
    for group in _groups(windows):
        yield collate([windows[index] for index in group], packed=False).to(device)
        progress.advance(len(group))


def states_before_targets(model: PreTrainedModel, logits: Logits | None, batch: MicroBatch) -> Tensor:
    """Return what the logits of each predicted token are made from, ``[positions, features]``.

    Without ``logits`` these are the model's own logits, ``[positions, vocabulary]``. Rows come window by window.
    """
    is_predicted = batch.labels[:, 1:] != IGNORED_LABEL
    if logits is None:
        states = model(**batch.model_inputs(), use_cache=False).logits
    else:
        # The layers of a model that is spread over several devices end on another one than they begin.
        hidden = logits.body(**batch.model_inputs(), use_cache=False).last_hidden_state
        states = hidden.to(logits.head.weight.device)
    return states[:, :-1][is_predicted.to(states.device)]


def targets_of(batch: MicroBatch) -> Tensor:
    """Return the predicted tokens, ``[positions]``, window by window."""
    labels = batch.labels[:, 1:]
    return labels[labels != IGNORED_LABEL]
