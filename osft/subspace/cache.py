"""Decompositions kept on disk under the hash of what they were computed from.

The protected directions of a weight are a pure function of its values and of how many are protected, and computing
them is the slow part of a start. A file is named by the sha256 of the weight's bytes, shape and dtype, the number of
directions and :data:`FORMAT_VERSION`, so a model that was trained on, or another ratio, can never meet a wrong one,
and equal weights of several models share one. sha256 because it is the fastest of the standard library's hashes on
processors that have instructions for it (1.8 GB/s where blake2b does 0.8).

All of a model's decompositions take about as much as the model. The folder may be deleted at any time. Several
processes may write the same file: it appears whole, by a rename.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from osft.errors import one_line
from osft.subspace.decomposition import ProtectedSubspace
from osft.workspace import atomic_file

logger = logging.getLogger(__name__)

# Part of every name. Raise it when the same weight would get other directions than before.
FORMAT_VERSION = 1


class DecompositionCache:
    """Computes what is protected of a weight, or reads it where it was computed before."""

    def __init__(self, folder: Path | None) -> None:
        """Keep files below ``folder``, which is made when the first is written; ``None`` keeps nothing."""
        self._folder = folder
        self.hits = 0
        """Decompositions that were read and not computed."""

    def get_or_compute(
        self, weight: Tensor, protected_rank: int, compute: Callable[[], ProtectedSubspace]
    ) -> ProtectedSubspace:
        """Return what ``compute`` returns, in the weight's dtype, computed here or earlier.

        The result has the same bits whether it was computed, computed and written, or read.

        Args:
            weight: ``[rows, columns]``, any floating dtype, on any device.
            protected_rank: directions that ``compute`` protects on each side.
            compute: decomposes ``weight``; a pure function of its values and ``protected_rank``.
        """
        if self._folder is None:
            return _keep(compute(), weight)
        key = _key(weight, protected_rank)
        path = self._folder / key[:2] / f"{key}.safetensors"
        found = _read(path, weight, protected_rank)
        if found is not None:
            self.hits += 1
            return found
        computed = _keep(compute(), weight)
        _write(path, computed)
        return computed


def _keep(protected: ProtectedSubspace, weight: Tensor) -> ProtectedSubspace:
    """Return ``protected`` as a file of it would give it back: in the weight's dtype, which it is used in.

    Strides included, since they decide a product's last bit.
    """
    tensors = {name: tensor.to(weight.dtype).contiguous() for name, tensor in _tensors(protected).items()}
    return ProtectedSubspace(**tensors)


def _tensors(protected: ProtectedSubspace) -> dict[str, Tensor]:
    """Return what ``protected`` has, by name."""
    values = {field.name: getattr(protected, field.name) for field in fields(protected)}
    return {name: tensor for name, tensor in values.items() if tensor is not None}


def _key(weight: Tensor, protected_rank: int) -> str:
    values = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{FORMAT_VERSION} {values.dtype} {tuple(values.shape)} {protected_rank}\n".encode())
    # As bytes: numpy knows no bfloat16.
    digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, weight: Tensor, protected_rank: int) -> ProtectedSubspace | None:
    """Return what ``path`` holds for ``weight``; ``None`` if there is no such file or it is damaged."""
    try:
        # Read, not mapped: a file that another process removes or cuts must not take these tensors with it.
        tensors = load(path.read_bytes())
        found = ProtectedSubspace(**{name: tensor.to(weight.device) for name, tensor in tensors.items()})
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, TypeError) as error:
        logger.warning("%s: cannot be read (%s); decomposing again", path, one_line(error))
        return None
    rows, columns = weight.shape
    shapes = tuple(found.left.shape), tuple(found.right.shape)
    if shapes != ((rows, protected_rank), (columns, protected_rank)):
        logger.warning("%s: holds shapes %s and %s; decomposing again", path, *shapes)
        return None
    return found


def _write(path: Path, protected: ProtectedSubspace) -> None:
    try:
        with atomic_file(path) as file:
            file.write(save({name: tensor.cpu() for name, tensor in _tensors(protected).items()}))
    except OSError as error:
        logger.warning("%s: cannot be written (%s); the next run decomposes again", path, one_line(error))
