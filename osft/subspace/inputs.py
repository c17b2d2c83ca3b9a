"""Which directions of a weight's inputs a text uses: the leading eigenvectors of their covariance.

What a layer computes for inputs inside these directions cannot change when no update touches them: with
``D right = 0``, ``(W + D) x = W x`` for every ``x`` that ``right`` spans. So the layers' answers to the text, and to
what is like it, stay; the weights' own singular directions promise that only for what the weights amplify most.

The covariance is the uncentred one, ``E[x x^T]`` over the text's tokens: a weight multiplies the mean like any other
direction. It is gathered in one pass over the text without keeping activations; each takes ``inputs^2`` values (for
an 8-billion-parameter Llama 39 GB together in float32), freed one after the other as the weights are decomposed.

Source: the idea is Gradient Projection Memory, Saha et al. 2021, arXiv:2103.09762; here for the linear set of
:mod:`osft.subspace.parametrization`.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from osft.data.files import TRAIN_NAME, VALID_NAME, jsonl_file
from osft.data.processing.process import process_dataset
from osft.data.processing.report import ProcessingConfig
from osft.data.samples import PARQUET_MAGIC, Sample, Samples, load_samples, token_lengths
from osft.data.validation.rows import describe_problem, parse_row
from osft.errors import DataError, TrainingError
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank
from osft.subspace.targets import Target, holders, target_parameter

logger = logging.getLogger(__name__)


def load_input_samples(
    path: Path, model_path: str, max_tokens: int, vocab_size: int, *, document_column: str = "document"
) -> Samples:
    """Return the rows of a text as token ids; what a row is, is seen from the first one.

    Args:
        path: JSON Lines of messages, of documents or of token ids, parquet of token ids, or a folder with
            ``train.parquet`` or ``valid.jsonl``.
        model_path: folder or Hugging Face id whose tokenizer is used.
        max_tokens: longer rows are cut there; documents are put together and cut into blocks of it.
        vocab_size: rows of the model's embedding.
        document_column: column of the documents' text.

    Raises:
        MissingPathError: if there is no such file.
        DataError: if the first row is of no known kind, or a row is not valid.
    """
    file = text_file(path)
    data_format = _format_of(file, document_column)
    if data_format == "processed":
        return load_samples(file, vocab_size).cut(max_tokens)
    processing = ProcessingConfig(
        model=model_path,
        data_format=data_format,
        max_seq_len=max_tokens,
        # What is trained does not matter here: a row without an answer is text as well.
        unmask_messages=True,
        holdout_fraction=0.0,
        on_too_long="truncate",
        block_size=max_tokens if data_format == "documents" else None,
        document_column=document_column,
    )
    with TemporaryDirectory() as directory:
        process_dataset(file, Path(directory), processing)
        return load_samples(Path(directory), vocab_size)


def text_file(path: Path) -> Path:
    """Return the file of a text that is given as a file or a folder.

    Raises:
        MissingPathError: if there is no such file.
    """
    return jsonl_file(path / TRAIN_NAME if (path / TRAIN_NAME).is_file() else path, VALID_NAME)


def _format_of(file: Path, document_column: str) -> str:
    with file.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    if first.startswith(PARQUET_MAGIC):
        return "processed"
    row = parse_row(first)
    if isinstance(row, tuple):
        raise DataError(f"{file}, first row: {describe_problem(row)} Give JSON Lines of messages or documents.")
    columns = {"messages": "messages", "input_ids": "processed", document_column: "documents"}
    for column, data_format in columns.items():
        if column in row:
            return data_format
    raise DataError(
        f"{file}, first row: has none of the columns {', '.join(columns)}. "
        "Give JSON Lines of messages, of documents or of token ids."
    )


def equal_length_batches(samples: Sequence[Sample], max_tokens: int) -> Iterator[Tensor]:
    """Yield ``[samples, tokens]``, int64, longest first: samples of one length together, at most ``max_tokens``.

    Without padding every position is a token of the text, also behind a router, where no mask could say which are.
    Lengths repeat in any text that is large enough for the size of a batch to matter.
    """
    lengths = token_lengths(samples)
    longest_first = np.argsort(-lengths, kind="stable")
    for length, group in groupby(longest_first.tolist(), key=lambda index: int(lengths[index])):
        while indices := list(islice(group, max(1, max_tokens // length))):
            rows = np.stack([samples[index].input_ids for index in indices])
            yield torch.from_numpy(rows.astype(np.int64))


@torch.no_grad()
def run_text(model: PreTrainedModel, batches: Iterable[Tensor]) -> None:
    """Take ``batches`` of token ids through the model's body, for its hooks; no logits are made.

    Args:
        model: it is left in the mode, training or not, that it is in.
        batches: each ``[samples, tokens]``, without padding.
    """
    was_training = model.training
    model.eval()
    # What lies outside the blocks of a model that FSDP spreads is there only when all of it is called.
    run = partial(model, logits_to_keep=1) if isinstance(model, FSDPModule) else model.base_model
    for input_ids in batches:
        run(input_ids=input_ids.to(model.device), use_cache=False)
    model.train(was_training)


@dataclass(frozen=True, kw_only=True, slots=True)
class InputPlace:
    """Where the inputs of a weight are to be seen, also once the weight is trained in another form."""

    modules: tuple[str, ...]
    """Names of the modules that multiply with it; more than one where blocks share it."""

    inputs: int
    """Size of the inputs."""


def input_places(model: PreTrainedModel, targets: Sequence[Target]) -> dict[str, InputPlace]:
    """Return where the inputs of each target come in, by its name; to be called before anything is attached.

    Stacks of experts, which share the inputs that a router deals out, are left out.

    Args:
        model: the weights may be spread over processes, or have no values.
        targets: what is trained.
    """
    names = {module: name for name, module in model.named_modules()}
    places = {}
    for target in targets:
        weight = target_parameter(model, target)
        if weight.ndim == 2:
            modules = tuple(names[module] for module, _ in holders(model, target))
            inputs = weight.shape[1 if target.inputs_are_columns else 0]
            places[target.name] = InputPlace(modules=modules, inputs=inputs)
    return places


def input_covariances(
    model: PreTrainedModel, targets: Sequence[Target], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return :func:`covariances_at` all targets but stacks of experts, which have no inputs of their own."""
    return covariances_at(model, input_places(model, targets), batches)


def covariances_at(
    model: PreTrainedModel, places: Mapping[str, InputPlace], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return ``E[x x^T]`` of the inputs at each place; one forward pass.

    The sums are taken in float32 (float64 for a float64 model): the matrix product adds to them in place, and the
    rounding, some 1e-6 of each entry, lies far below the error of any sample of a text. In float64 those of an
    8-billion-parameter model would not fit on one GPU beside it.

    Args:
        model: base or trained; one that is spread over processes runs where its weights are whole.
        places: by the names of the weights; those that no token reaches are left out.
        batches: each ``[samples, tokens]``, without padding.

    Returns:
        ``[inputs, inputs]`` on the device of the inputs.

    Raises:
        TrainingError: if inputs are not finite.
    """
    sums = {name: _InputSum() for name in places}
    with ExitStack() as hooks:
        for name, place in places.items():
            for module in place.modules:
                hook = model.get_submodule(module).register_forward_pre_hook(sums[name].add, with_kwargs=True)
                hooks.enter_context(hook)
        run_text(model, batches)
    covariances = {name: total.mean() for name, total in sums.items() if total.tokens}
    for name, covariance in covariances.items():
        if not bool(covariance.diagonal().isfinite().all()):
            raise TrainingError(
                f"the inputs of {name} are not finite over the text that is measured. Check the model and the text."
            )
    return covariances


def first_input(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Return what a linear layer is called with, ``[..., inputs]``, in a forward pre-hook."""
    return arguments[0] if arguments else named["input"]


class _InputSum:
    """The sum of ``x x^T`` over what one weight is multiplied with; its memory is taken when the first come."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum = torch.zeros(0, 0)

    def add(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Add the inputs ``[..., inputs]``, the first of ``arguments``; a forward pre-hook."""
        inputs = first_input(arguments, named).detach()
        inputs = inputs.reshape(-1, inputs.shape[-1]).to(torch.promote_types(inputs.dtype, torch.float32))
        if self.tokens == 0:
            self._sum = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
        self._sum.addmm_(inputs.T, inputs)
        self.tokens += len(inputs)

    def mean(self) -> Tensor:
        """Return the sum over the number of tokens, in the same memory."""
        return self._sum.div_(self.tokens)


@torch.no_grad()
def protect_input_directions(
    weight: Tensor, covariance: Tensor, unfreeze_rank_ratio: float, *, inputs_are_columns: bool, join_weights: bool
) -> ProtectedSubspace:
    """Return the directions of a weight's inputs that matter most; nothing is protected on the output side.

    Of ``m`` inputs, ``min(floor(m (1 - rho)), m - 1)`` directions are protected (all at ``rho = 0``), whether those of
    the covariance alone or joined with the weights': then covariance and Gram matrix ``W^T W``, each scaled to trace
    1, are added, and the leading eigenvectors of the sum share the one budget. ``W^T W`` has the weight's right
    singular vectors, so both kinds compete as directions of the inputs. The output side stays free in both cases:
    ``D right = 0`` alone keeps ``W x`` for every protected ``x``, a limit on outputs would only take room from what
    is learnt, and this is the form whose forgetting was measured.

    Args:
        weight: ``[rows, columns]``, any floating dtype; not changed.
        covariance: ``[inputs, inputs]`` of the weight's inputs, symmetric.
        unfreeze_rank_ratio: share of the directions left free, 0 to 1.
        inputs_are_columns: ``False`` where the weight is stored ``[inputs, outputs]``; then ``left`` is filled.
        join_weights: join the weight's own directions.

    Returns:
        Orthonormal directions of the inputs in the weight's dtype.
    """
    size = len(covariance)
    protected_rank = frozen_rank(size, size, unfreeze_rank_ratio)
    use = covariance.to(weight.device, torch.float64)
    if join_weights:
        exact = weight.to(torch.float64)
        gram = exact.T @ exact if inputs_are_columns else exact @ exact.T
        use = _of_trace_one(use) + _of_trace_one(gram)
    # eigh sorts ascending: the last columns belong to what is used most.
    rest, directions = torch.linalg.eigh(use).eigenvectors.split([size - protected_rank, protected_rank], dim=1)
    free = rest.to(weight.dtype).contiguous() if rest.shape[1] <= protected_rank else None
    directions = directions.flip(1).to(weight.dtype).contiguous()
    nothing = directions.new_zeros(math.prod(weight.shape) // size, 0)
    if inputs_are_columns:
        return ProtectedSubspace(left=nothing, right=directions, free_right=free)
    return ProtectedSubspace(left=directions, right=nothing, free_left=free)


def _of_trace_one(matrix: Tensor) -> Tensor:
    """Scale a positive semidefinite matrix to trace 1; one of zeros stays as it is."""
    trace = matrix.trace()
    return matrix / trace if trace > 0 else matrix
