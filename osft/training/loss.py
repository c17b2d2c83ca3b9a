"""The loss of a micro-batch, without ever holding the logits of all its tokens.

Logits are the largest tensor of a step: 8192 tokens of a vocabulary of 128,000 take 4 GB in float32, and their
gradient as much again. So the head is applied to the trained positions alone, a chunk of them at a time, and the
gradient of a chunk is taken at once, in the forward pass: nothing is kept of a chunk but the gradient of its hidden
states, and nothing is computed twice. (The idea is that of Liger's fused linear cross-entropy, arXiv:2410.10989.)

Some families change the logits behind the head (Gemma 2 and 3 cap them, Cohere and Granite scale them).
:func:`find_logits` reads what a model does off the model itself, and where it cannot, the model computes its own.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from osft.data.samples import Sample
from osft.data.validation.rows import IGNORED_LABEL
from osft.training.batches import MicroBatch

logger = logging.getLogger(__name__)

# 256 MiB in float32: 512 positions of a vocabulary of 128,000, enough of them to keep a GPU's matrix units busy.
LOGITS_IN_CHUNK = 1 << 26
# Short, unequal samples: what differs between packed and padded differs on them too.
PROBE_LENGTHS = (13, 7, 19)
# Two ways to the same numbers, relative to the norm of a token's; bfloat16 loses that much over the layers.
FLOAT32_TOLERANCE = 1e-4
HALF_TOLERANCE = 0.05
# What configurations call the factor, or divisor, of the logits.
SCALE_NAMES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
SOFTCAP_NAME = "final_logit_softcapping"


@dataclass(frozen=True, kw_only=True, slots=True)
class Logits:
    """How a model makes logits from the last hidden states of its body."""

    body: nn.Module
    head: nn.Linear
    behind_head: Callable[[Tensor], Tensor]
    """What the model does to the head's output."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits ``[positions, vocabulary]`` of ``hidden``, ``[positions, features]``."""
        return self.behind_head(self.head(hidden))


def summed_loss(model: PreTrainedModel, batch: MicroBatch, logits: Logits | None) -> Tensor:
    """Return the cross-entropy summed over the trained tokens of ``batch``, a float32 scalar.

    Args:
        model: a causal language model.
        batch: on the model's device.
        logits: what :func:`find_logits` returned for the model; without it all logits are computed at once.
    """
    labels = batch.labels[:, 1:]
    trained = labels != IGNORED_LABEL
    # A module that reads its trained weight expert by expert would otherwise make all of it each time.
    with parametrize.cached():
        if logits is None:
            own_logits = model(**batch.model_inputs(), use_cache=False).logits
            return _cross_entropy(own_logits[:, :-1][trained], labels[trained])
        hidden = logits.body(**batch.model_inputs(), use_cache=False).last_hidden_state
    head_parameters = [parameter for parameter in logits.head.parameters() if parameter.requires_grad]
    loss: Tensor = _ChunkedLoss.apply(logits, hidden[:, :-1][trained], labels[trained], *head_parameters)
    return loss


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def _cross_entropy_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy summed over ``logits``, ``[positions, vocabulary]``, and its gradient in their dtype.

    The gradient is softmax less one at the label; it takes the place of the logarithms, in one float32 buffer.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    at_label = (torch.arange(len(labels), device=labels.device), labels)
    loss = -log_probabilities[at_label].sum()
    gradient = log_probabilities.exp_()
    gradient[at_label] -= 1.0
    return loss, gradient.to(logits.dtype)


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden states; the gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, logits: Logits, hidden: Tensor, labels: Tensor, *head_parameters: Tensor) -> Tensor:
        """Return the loss of ``hidden``, ``[positions, features]``, and ``labels``, ``[positions]``."""
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        # In float32, since many chunks add up.
        head_gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in head_parameters]
        for chunk in _chunks(logits, len(hidden)):
            with torch.enable_grad():
                part = hidden[chunk].detach().requires_grad_()
                scores = logits(part)
            chunk_loss, score_gradient = _cross_entropy_and_gradient(scores.detach(), labels[chunk])
            gradients = torch.autograd.grad(scores, [part, *head_parameters], score_gradient)
            loss += chunk_loss
            hidden_gradient[chunk] = gradients[0]
            for total, gradient in zip(head_gradients, gradients[1:], strict=True):
                total += gradient
        ctx.save_for_backward(hidden_gradient, *head_gradients)
        ctx.dtypes = [tensor.dtype for tensor in (hidden, *head_parameters)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the forward pass, times that of the loss."""
        # In float32, or the factor itself would be rounded to the gradient's precision.
        hidden, *head = [
            (gradient.float() * loss_gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, hidden, None, *head


def _chunks(logits: Logits, num_positions: int) -> list[slice]:
    """Return like parts of the positions, as few as :data:`LOGITS_IN_CHUNK` allows."""
    most_positions = max(1, LOGITS_IN_CHUNK // logits.head.out_features)
    num_chunks = math.ceil(num_positions / most_positions)
    size = math.ceil(num_positions / max(1, num_chunks))
    return [slice(start, start + size) for start in range(0, num_positions, max(1, size))]


def find_logits(model: PreTrainedModel, probe: MicroBatch) -> Logits | None:
    """Find out on a small batch how ``model`` makes logits; ``None``, with a log line, if it does so in its own way.

    What stands behind the head must give the model's own logits bit for bit.

    Args:
        model: a causal language model; it ends in the mode, training or evaluation, that it came in.
        probe: a padded batch on the model's device.
    """
    head, body = model.get_output_embeddings(), model.base_model
    if isinstance(head, nn.Linear) and body is not model:
        head_input, head_output, own = _watch_head(model, head, probe)
        with evaluating(model):
            hidden = body(**probe.model_inputs(), use_cache=False).last_hidden_state
        if head_input is not None and is_close(hidden, head_input):
            for behind_head in _known_transformations(model):
                if torch.equal(behind_head(head_output).float(), own.float()):
                    return Logits(body=body, head=head, behind_head=behind_head)
    logger.info(
        "%s makes its logits in a way of its own: those of a micro-batch are held at once", type(model).__name__
    )
    return None


def _watch_head(model: PreTrainedModel, head: nn.Linear, probe: MicroBatch) -> tuple[Tensor | None, Tensor, Tensor]:
    """Run ``model`` and return what went into its head, what came out, and the logits."""
    calls: list[tuple[Tensor, Tensor]] = []
    watch = head.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        with evaluating(model):
            own = model(**probe.model_inputs(), use_cache=False).logits
    finally:
        watch.remove()
    if len(calls) != 1:
        return None, own, own
    # A model that is spread over several GPUs returns its logits where its first layer is.
    return *calls[0], own.to(calls[0][1].device)


def _known_transformations(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what the families do to the head's output, with this model's numbers."""
    settings = model.config.get_text_config().to_dict()
    yield _unchanged
    if cap := settings.get(SOFTCAP_NAME):
        yield partial(_softcapped, cap=cap)
    for name in SCALE_NAMES:
        if scale := settings.get(name):
            yield partial(torch.mul, other=scale)
            yield partial(torch.div, other=scale)


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _softcapped(logits: Tensor, cap: float) -> Tensor:
    return torch.tanh(logits / cap) * cap


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Leave out dropout and gradients for the length of the block."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def is_close(values: Tensor, expected: Tensor) -> bool:
    """Return whether two ways to compute ``[..., features]`` agree, every position of them, up to rounding."""
    if values.shape != expected.shape:
        return False
    tolerance = FLOAT32_TOLERANCE if expected.dtype == torch.float32 else HALF_TOLERANCE
    difference = (values.float() - expected.float()).norm(dim=-1)
    return bool((difference <= tolerance * expected.float().norm(dim=-1)).all())


def make_probe(samples: Sequence[Sample]) -> list[Sample]:
    """Return three short samples, cut from the first ones of ``samples``, all of whose tokens are trained."""
    chosen = [samples[index % len(samples)] for index in range(len(PROBE_LENGTHS))]
    # From the end: many conversations begin with the same words, and a foreign sample would look like one's own.
    cut = [sample.input_ids[-length:] for sample, length in zip(chosen, PROBE_LENGTHS, strict=True)]
    return [Sample(input_ids=ids, labels=ids, row=sample.row) for ids, sample in zip(cut, chosen, strict=True)]
