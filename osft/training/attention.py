"""Attention within the samples of a packed row, and the decision whether a model may be given such rows.

A token must see its own sample only. flash-attn takes the samples' bounds as they are. For PyTorch's attention
transformers builds a mask of all tokens against all tokens of the row; a call for each sample costs the sum of
the squared lengths alone (2,048 tokens of 12 heads, forward and backward on one CPU core: 4 samples of 512 take 174 ms
instead of 747, 64 of 32 take 30 ms instead of 727). On a GPU PyTorch's variable-length kernel does it in one call.

Not every family can be packed: windows, chunks, sinks and recurrent mixers look further than one sample, or keep their
own count of positions. Configuration and structure tell most of them, a comparison at the start of a run the rest.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from osft.data.samples import Sample, token_lengths
from osft.processes.group import is_true_everywhere
from osft.training.batches import collate
from osft.training.loss import Logits, evaluating, find_logits, is_close, make_probe

logger = logging.getLogger(__name__)

PACKED_ATTENTION = "osft_packed"
FLASH_ATTENTION = "flash_attention_2"
# The first release whose varlen_attn takes grouped heads and a causal window in the form used here.
VARLEN_TORCH = "2.13"
# What PyTorch's flash kernels take.
MAX_HEAD_SIZE = 256
HEAD_SIZE_MULTIPLE = 8
MIN_COMPUTE_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """How micro-batches go through a model."""

    packed: bool
    """Samples stand in one row without padding, not in padded rows."""

    logits: Logits | None
    """Where the logits come from, to compute the loss in chunks; ``None`` where only the model itself knows."""


def choose_forward(model: PreTrainedModel, samples: Sequence[Sample]) -> Forward:
    """Find out what ``model`` allows, on a few tokens of ``samples``, and make it ready for it.

    Args:
        model: a causal language model on its device.
        samples: what it will be trained on.
    """
    probe = make_probe(samples)
    logits = find_logits(model, collate(probe, packed=False).to(model.device))
    longest = int(token_lengths(samples).max())
    before = model.config.get_text_config()._attn_implementation
    reason = reason_to_pad(model, longest) or _failed_probe(model, probe, logits)
    # Rounding decides the probe, and all must cut a batch alike.
    if not is_true_everywhere(reason is None, model.device) and reason is None:
        model.set_attn_implementation(before)
        reason = "differs on packed samples in another process"
    if reason:
        logger.info("micro-batches are padded, not packed: %s %s", type(model).__name__, reason)
    return Forward(packed=reason is None, logits=logits)


def reason_to_pad(model: PreTrainedModel, longest_tokens: int) -> str | None:
    """Say what in configuration or structure speaks against packing, ``None`` if nothing does."""
    settings = model.config.get_text_config().to_dict()
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in (FLASH_ATTENTION, "sdpa", PACKED_ATTENTION):
        return f"computes its attention by '{implementation}'"
    kinds = set(settings.get("layer_types") or ())
    if others := kinds - {"full_attention", "sliding_attention"}:
        return f"has layers of the kind {', '.join(sorted(others))}"
    has_window = "sliding_attention" in kinds if kinds else settings.get("use_sliding_window", True)
    window = settings.get("sliding_window") if has_window else None
    # A window that no sample fills is none.
    if window is not None and window < longest_tokens:
        return f"has a sliding window of {window} tokens, and the longest sample has {longest_tokens}"
    if any(isinstance(module, nn.Conv1d) for module in model.modules()):
        return "has convolutions along the tokens"
    parameters = inspect.signature(model.base_model.forward).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "position_ids" not in parameters or not takes_more:
        return "does not take the positions and bounds of packed samples"
    return None


def _failed_probe(model: PreTrainedModel, probe: Sequence[Sample], logits: Logits | None) -> str | None:
    """Prepare ``model`` for packing and compare packed with padded samples; undo it and say so if they differ."""
    before = model.config.get_text_config()._attn_implementation
    expected = _last_states(model, probe, logits, packed=False)
    if before != FLASH_ATTENTION:
        ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, attend_within_samples)
        ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, mask_of_padding)
        model.set_attn_implementation(PACKED_ATTENTION)
    if before == FLASH_ATTENTION or model.config.get_text_config()._attn_implementation == PACKED_ATTENTION:
        try:
            if is_close(_last_states(model, probe, logits, packed=True), expected):
                return None
            reason = "computes something else on packed samples"
        except (RuntimeError, TypeError, ValueError) as error:
            # Code of many families: whatever it stumbles over, padded batches are what it was written for.
            reason = f"refuses packed samples ({type(error).__name__})"
    else:
        reason = "does not let its attention be chosen"
    model.set_attn_implementation(before)
    return reason


def _last_states(model: PreTrainedModel, probe: Sequence[Sample], logits: Logits | None, *, packed: bool) -> Tensor:
    """Return the hidden states behind the body, or the logits, of the real tokens, ``[tokens, features]``."""
    batch = collate(probe, packed=packed).to(model.device)
    with evaluating(model):
        if logits is None:
            states = model(**batch.model_inputs(), use_cache=False).logits
        else:
            states = logits.body(**batch.model_inputs(), use_cache=False).last_hidden_state
    return states[0] if batch.attention_mask is None else states[batch.attention_mask.bool()]


def attend_within_samples(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention in the form of transformers' ``AttentionInterface``, each sample of a packed row for itself.

    Without bounds it is transformers' own.

    Args:
        module: the attention layer.
        query: ``[1, heads, tokens, head_size]``.
        key: ``[1, key_value_heads, tokens, head_size]``.
        value: as ``key``.
        attention_mask: only for a batch that is not packed.
        dropout: probability.
        scaling: of the scores; ``None`` for one over the root of ``head_size``.
        cu_seq_lens_q: the samples' bounds, ``[samples + 1]``, int32.
        max_length_q: tokens of the longest sample.
        kwargs: further arguments of transformers' attention functions.

    Returns:
        ``[1, tokens, heads, head_size]``, and no attention weights.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if dropout == 0.0 and _has_varlen_kernel(query, value):
        return _varlen_attention(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    lengths = cu_seq_lens_q.diff().tolist()
    parts = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, dropout, scaling, **kwargs)[0] for q, k, v in parts]
    return torch.cat(outputs, dim=1), None


def _has_varlen_kernel(query: Tensor, value: Tensor) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= MAX_HEAD_SIZE
        and query.shape[-1] % HEAD_SIZE_MULTIPLE == 0
        and torch.__version__ >= VARLEN_TORCH
        and torch.cuda.get_device_capability(query.device) >= MIN_COMPUTE_CAPABILITY
    )


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bounds: Tensor, longest_tokens: int
) -> Tensor:
    # Imported here: older releases of PyTorch, which this project takes too, have no such module.
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_q=bounds,
        cu_seq_k=bounds,
        max_q=longest_tokens,
        max_k=longest_tokens,
        scale=scaling,
        # Everything to the left, nothing to the right.
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    # A tuple only where more than the output is asked for.
    return cast(Tensor, output).unsqueeze(0)


def mask_of_padding(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return transformers' mask for a padded batch, and none for a packed row, whose bounds say it all."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)
