"""The tuned model beside what was kept of the base: both models' logits for the same tokens, compared.

Runs in the process that holds the tuned model, with nothing of the base model but its kept states and its head. Most
trainings leave the head as it is; then one of the two leaves memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from osft.data.samples import Sample
from osft.errors import EvaluationError, one_line
from osft.evaluation.probe.base_states import SETTINGS_KEY, broken, logit_settings, logits_of
from osft.evaluation.probe.windows import batches, longest_window, states_before_targets, targets_of
from osft.training.loss import Logits

LOGITS_AT_ONCE = 1 << 24
"""Numbers in the logits that are held at once: 64 MiB in float32, and some copies of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseStates:
    """What was kept of the base model; :mod:`osft.evaluation.probe.base_states` says what that is."""

    states: Tensor
    """``[positions, features]``, mapped from the file."""

    head: Mapping[str, Tensor]
    """``weight`` and perhaps ``bias``; empty if the states are the logits."""

    logit_settings: str
    windows: tuple[Sample, ...]


def compare_states(model: PreTrainedModel, file: Path, num_documents: int) -> NDArray[np.float64]:
    """Compare the tuned ``model`` with the base.

    Args:
        model: in evaluation mode.
        file: as :func:`osft.evaluation.probe.base_states.write_states` writes it.
        num_documents: of the probe.

    Returns:
        ``[5, documents]``: sums over each document's predicted tokens of 1, the base's and the tuned model's
        ``-log p(token)`` in nats, KL(base || tuned) in nats, and agreement.

    Raises:
        EvaluationError: if a number is not finite, the two models make their logits differently, or ``file`` cannot be
            read.
    """
    base = _read(file)
    longest_tokens = max(len(window.input_ids) for window in base.windows)
    if longest_window(model) < longest_tokens:
        raise EvaluationError(
            f"the tuned model ({model.name_or_path}) reads at most {longest_window(model)} tokens, the base at least "
            f"{longest_tokens}. Compare a model with the one it was trained from."
        )
    with torch.inference_mode():
        values = _values_of_all(model, base)
    tokens_of_windows = [len(window.input_ids) - 1 for window in base.windows]
    documents = np.repeat([window.row for window in base.windows], tokens_of_windows)
    rows = np.concatenate([np.ones((1, len(documents))), values])
    return np.stack([np.bincount(documents, weights=row, minlength=num_documents) for row in rows])


def _read(file: Path) -> BaseStates:
    try:
        with safe_open(file, framework="pt") as opened:
            # Mapped and not read: what a batch needs is read when it comes. No file of a cache is ever written to.
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            settings = opened.metadata()[SETTINGS_KEY]
    except (OSError, SafetensorError) as error:
        raise EvaluationError(
            f"{file}: what was kept of the base model cannot be read ({one_line(error)}). Delete it and evaluate again."
        ) from error
    parts = tensors["input_ids"].split(tensors["lengths"].tolist())
    windows = tuple(
        Sample(input_ids=ids.numpy(), labels=ids.numpy(), row=int(document))
        for ids, document in zip(parts, tensors["documents"], strict=True)
    )
    head = {name.removeprefix("head_"): tensor for name, tensor in tensors.items() if name.startswith("head_")}
    return BaseStates(states=tensors["states"], head=head, logit_settings=settings, windows=windows)


def _values_of_all(model: PreTrainedModel, base: BaseStates) -> NDArray[np.float64]:
    """Return ``[4, positions]``: what :func:`compare_logits` returns for every predicted token."""
    tuned_logits = logits_of(model, base.windows, "tuned")
    base_logits = _base_logits(base, tuned_logits, model)
    positions = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    values: list[Tensor] = []
    num_done = 0
    for batch in batches(base.windows, model.device, label="tuned"):
        tuned_states = states_before_targets(model, tuned_logits, batch)
        targets = targets_of(batch).to(tuned_states.device)
        # A copy even on a CPU: a mapped tensor lies at odd addresses, and products there may round otherwise.
        base_states = base.states[num_done : num_done + len(targets)].to(tuned_states.device, copy=True)
        num_done += len(targets)
        for start in range(0, len(targets), positions):
            chunk = slice(start, start + positions)
            of_base, of_tuned = _make(base_logits, base_states[chunk]), _make(tuned_logits, tuned_states[chunk])
            values.append(_finite(compare_logits(of_base, of_tuned, targets[chunk]).cpu()))
    return torch.cat(values, dim=1).numpy()


def _base_logits(base: BaseStates, tuned_logits: Logits | None, model: PreTrainedModel) -> Logits | None:
    """Return how the base model's logits are made from its states; None if they are its states.

    Its head is its own. What stands behind the head is the family's, and its numbers must be the tuned model's.
    """
    if bool(base.head) != (tuned_logits is not None) or base.logit_settings != logit_settings(model):
        raise EvaluationError(
            f"base and tuned model ({model.name_or_path}) make their logits differently: {base.logit_settings} and "
            f"{logit_settings(model)}. Compare a model with the one it was trained from."
        )
    if tuned_logits is None:
        return None
    tuned_head = tuned_logits.head.state_dict()
    base_head = {name: tensor.to(tuned_logits.head.weight.device) for name, tensor in base.head.items()}
    if base_head.keys() == tuned_head.keys() and all(_equal(base_head[name], tuned_head[name]) for name in base_head):
        return tuned_logits
    vocabulary, features = base_head["weight"].shape
    head = nn.Linear(features, vocabulary, bias="bias" in base_head, device="meta")
    head.load_state_dict(base_head, assign=True)
    return replace(tuned_logits, head=head)


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def _make(logits: Logits | None, states: Tensor) -> Tensor:
    return states if logits is None else logits(states)


def compare_logits(base: Tensor, tuned: Tensor, targets: Tensor) -> Tensor:
    """Return what two models' predictions of the same tokens are worth, and how far they are apart.

    ``sum_v p log(p / q)`` is taken as ``sum_v (p log(p / q) - p + q)``, which is the same, as both sum to 1. No term
    is negative, so nothing cancels in the sum, and the rounding error of a logarithm's normalizer, which all terms
    share, falls out in first order: models that are nearly equal are 1e-8 a token off in float32, not 1e-6.

    Args:
        base: ``[positions, vocabulary]``, logits, any floating dtype.
        tuned: likewise.
        targets: ``[positions]``, int64, the tokens that follow.

    Returns:
        ``[4, positions]``, float64: ``-log p(target)``, ``-log q(target)``, ``KL(p || q)``, all in nats, and 1 where
        both find the same token the most likely one, else 0.
    """
    agrees = base.argmax(dim=-1) == tuned.argmax(dim=-1)
    log_p = torch.log_softmax(base, dim=-1, dtype=torch.float32)
    log_q = torch.log_softmax(tuned, dim=-1, dtype=torch.float32)
    surprises = [-logarithms.gather(1, targets[:, None])[:, 0].double() for logarithms in (log_p, log_q)]
    log_ratio = log_p - log_q
    p, q = log_p.exp_(), log_q.exp_()
    kl = log_ratio.mul_(p).sub_(p).add_(q).sum(dim=-1).double()
    # Where hardly anything changed, rounding alone may fall below what a divergence can be.
    return torch.stack([*surprises, kl.clamp_(min=0.0), agrees.double()])


def _finite(values: Tensor) -> Tensor:
    """Return ``values`` unless they are a broken model's: one NaN or infinite logit makes its whole position so."""
    if not values.isfinite().all():
        raise broken("tuned" if values[0].isfinite().all() else "base")
    return values
