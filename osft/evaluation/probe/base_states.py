"""What the base model made of the probe, kept so that it need not be loaded again.

All its logits would be the largest thing in the cache: 17 GB for 65,536 tokens of a vocabulary of 128,256 in bfloat16.
What they are made from is small: the last hidden states, 0.5 GB with 4096 features, and the weight of the head, 1.1 GB.
From these the same logits come again, chunk by chunk, wherever the tuned model's are made. Only for a model that makes
its logits in a way :func:`osft.training.loss.find_logits` does not know are they kept themselves, if they are few.

A file holds the windows too, so that the comparison needs nothing else:

- ``input_ids`` ``[tokens]``, ``lengths`` ``[windows]`` and ``documents`` ``[windows]``: the windows;
- ``states`` ``[positions, features]``, in the model's dtype: what the logits of each predicted token are made from;
- ``head_weight`` ``[vocabulary, features]`` and ``head_bias`` ``[vocabulary]``, unless the states are the logits.

Entries are named by a hash of all that determines them. The folder may be deleted at any time.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from osft.content_cache import ContentCache, content_key
from osft.data.samples import Sample
from osft.errors import DataError, EvaluationError, one_line
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.probe.text import Documents
from osft.evaluation.probe.windows import (
    WINDOW_TOKENS,
    batches,
    cut_into_windows,
    longest_window,
    states_before_targets,
)
from osft.training.batches import collate
from osft.training.loss import SCALE_NAMES, SOFTCAP_NAME, Logits, find_logits, make_probe

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every key. Raise it when the same model and text would give another file or other numbers than before."""

STATES_NAME = "base.safetensors"
SETTINGS_KEY = "logit_settings"

MAX_STATES_BYTES = 8 << 30
"""Most that is kept of a probe beside the head: hidden states always fit, a large vocabulary's logits may not."""


def remember_on_probe(model: LazyModel, documents: Documents, cache: Path) -> Path:
    """Keep what the base model makes of the probe, unless it is kept already: then the model is not loaded.

    Args:
        model: the base model.
        documents: what :func:`osft.evaluation.probe.text.read_probe` returned.
        cache: folder of the cache.

    Returns:
        The folder of the entry, for :func:`~osft.evaluation.probe.comparison.compare_on_probe`.

    Raises:
        DataError: if the model does not know a token.
        EvaluationError: if a state is no finite number, the logits themselves would have to be kept and are many, or
            the file cannot be written.
    """
    _check_tokens(documents, model)
    entries = ContentCache(cache_folder(cache))
    key = _key(model, documents)
    entry = entries.entry(key)
    if _is_whole(entry / STATES_NAME):
        logger.info("%s: what it makes of the probe is known", model.label)
        return entry
    if entry.is_dir():
        shutil.rmtree(entry)
    entries.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entries.root, prefix=".partial-") as partial:
        file = Path(partial) / STATES_NAME
        model.run(write_states, file, documents, model.source.tokenizer.bos_token_id, model.label)
        entries.keep(key, [file])
    return entry


def cache_folder(cache: Path) -> Path:
    """Return where all that is known of probes is kept."""
    return cache / "probe"


def model_parts(model: LazyModel) -> dict[str, Any]:
    """Return what of ``model`` determines its numbers."""
    return {"format": FORMAT_VERSION, "model": model.fingerprint, "model_runs": model.identity}


def _key(model: LazyModel, documents: Documents) -> str:
    return content_key(model_parts(model) | {"window_tokens": WINDOW_TOKENS, "documents": documents})


def _check_tokens(documents: Documents, model: LazyModel) -> None:
    for number, document in enumerate(documents, start=1):
        if (largest := max(document)) >= model.source.vocabulary_size:
            raise DataError(
                f"document {number} of the probe has the token id {largest}, but the vocabulary of the {model.label} "
                f"model has {model.source.vocabulary_size} entries. Save the model's own tokenizer with it."
            )


def _is_whole(file: Path) -> bool:
    """Return whether ``file`` is there and as long as its header says."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError) as error:
        logger.warning("%s: cannot be read (%s); the base model is asked again", file, one_line(error))
        return False


def write_states(model: PreTrainedModel, file: Path, documents: Documents, first_token: int | None, label: str) -> None:
    """Write what ``model`` makes of ``documents`` to ``file``; runs where the model is.

    Args:
        model: in evaluation mode.
        file: described at the top of this module.
        documents: token ids.
        first_token: what texts of the model begin with, if anything.
        label: what log lines and errors call the model.

    Raises:
        EvaluationError: as :func:`remember_on_probe` does.
    """
    windows = cut_into_windows(documents, window_tokens=longest_window(model), first_token=first_token)
    with torch.inference_mode():
        logits = logits_of(model, windows, label)
        tensors = {"states": _states(model, logits, windows, label), **_head(logits), **_window_tensors(windows)}
    _save(tensors, file, logit_settings(model))


def _save(tensors: dict[str, Tensor], file: Path, settings: str) -> None:
    try:
        save_file(tensors, file, metadata={SETTINGS_KEY: settings})
        # A pod under another user id of the same group must read it, and after a crash it must not be half there.
        file.chmod(0o664)
        with file.open("rb") as written:
            os.fsync(written.fileno())
    except (OSError, SafetensorError) as error:
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        raise EvaluationError(
            f"{file.parent.parent}: the {num_bytes / 1e9:.1f} GB that the base model makes of the probe cannot be kept "
            f"({one_line(error)}). Free space there, or give a shorter probe."
        ) from error


def logits_of(model: PreTrainedModel, windows: Sequence[Sample], label: str) -> Logits | None:
    """Return how ``model`` makes its logits, ``None`` if in a way of its own.

    Raises:
        EvaluationError: if they are not finite: what makes them could not be told.
    """
    batch = collate(make_probe(windows), packed=False).to(model.device)
    logits = find_logits(model, batch)
    if logits is None and not model(**batch.model_inputs(), use_cache=False).logits.isfinite().all():
        raise broken(label)
    return logits


def logit_settings(model: PreTrainedModel) -> str:
    """Return as JSON what the model's configuration says of its logits: they are the head's, changed by this."""
    settings = model.config.get_text_config().to_dict()
    return json.dumps({name: settings[name] for name in (SOFTCAP_NAME, *SCALE_NAMES) if settings.get(name)})


def _states(model: PreTrainedModel, logits: Logits | None, windows: Sequence[Sample], label: str) -> Tensor:
    """Return the states of all windows, ``[positions, features]``, in main memory."""
    num_positions = sum(len(window.input_ids) - 1 for window in windows)
    states, num_done = torch.empty(0), 0
    for batch in batches(windows, model.device, label=label):
        part = states_before_targets(model, logits, batch)
        if num_done == 0:
            _check_size(num_positions, part)
            states = torch.empty((num_positions, *part.shape[1:]), dtype=part.dtype)
        if not part.isfinite().all():
            raise broken(label)
        states[num_done : num_done + len(part)] = part
        num_done += len(part)
    return states


def _check_size(num_positions: int, part: Tensor) -> None:
    bytes_of_one = part.shape[1] * part.element_size()
    if num_positions * bytes_of_one > MAX_STATES_BYTES:
        raise EvaluationError(
            f"the probe predicts {num_positions} tokens, and this model makes its logits in a way of its own, so all "
            f"{num_positions * bytes_of_one / 1e9:.1f} GB of them would be kept. "
            f"Give a probe of at most {MAX_STATES_BYTES // bytes_of_one} tokens."
        )


def broken(label: str) -> EvaluationError:
    """Return the error for numbers that are not finite."""
    return EvaluationError(
        f"the {label} model gave a number that is not finite on the probe. Its weights are broken or overflow its "
        "dtype; train it again with a lower learning rate."
    )


def _head(logits: Logits | None) -> dict[str, Tensor]:
    if logits is None:
        return {}
    head = {"head_weight": logits.head.weight, "head_bias": logits.head.bias}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in head.items() if tensor is not None}


def _window_tensors(windows: Sequence[Sample]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.from_numpy(np.concatenate([window.input_ids for window in windows])),
        "lengths": torch.tensor([len(window.input_ids) for window in windows]),
        "documents": torch.tensor([window.row for window in windows]),
    }
