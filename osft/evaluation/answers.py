"""One document of lm-eval's log as people read it: the question, the right answer, the model's answer.

lm-eval logs requests and responses, whose shape follows the kind of task: texts for generation, pairs of
(log-likelihood, is the most likely text) for everything that is scored by likelihood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_ANSWER = "(another text is more likely; log-likelihood of this answer: {:.2f})"


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentDescription:
    """What a reader needs to judge one answer."""

    prompt: str
    gold: str
    answer: str


def describe_document(sample: Mapping[str, Any], metric: str) -> DocumentDescription:
    """Describe one document of lm-eval's log.

    Args:
        sample: an entry of ``results["samples"][task]``.
        metric: the metric that counts; ``acc_norm`` picks a choice by its likelihood a character.
    """
    requests, responses = sample["arguments"], sample["filtered_resps"]
    prompt, gold = str(requests[0][0]), _text(sample["target"])
    if not _are_likelihoods(responses):
        answer = _text(responses[0]) if len(responses) == 1 else _text(responses)
        return DocumentDescription(prompt=prompt, gold=gold, answer=answer)
    if len(requests[0]) < 2:
        return DocumentDescription(prompt="", gold=gold, answer=f"log-likelihood {_loglikelihood(responses[0]):.2f}")
    if len(requests) == 1 or len(requests[0]) > 2:
        # The turns of one conversation: the last one's context holds the questions of all.
        answers = [_likely_answer(request, one) for request, one in zip(requests, responses, strict=True)]
        return DocumentDescription(prompt=str(requests[-1][0]), gold=gold, answer="\n".join(answers))
    return _multiple_choice(requests, responses, sample["target"], metric)


def _multiple_choice(
    requests: Sequence[Sequence[Any]], responses: Sequence[Any], target: Any, metric: str
) -> DocumentDescription:
    """Describe a choice between texts: after one prompt, or of prompts before one text (winogrande)."""
    # acc_mutual_info adds requests without a context, for the same choices.
    pairs = [(request, _loglikelihood(one)) for request, one in zip(requests, responses, strict=True) if request[0]]
    choices_are_prompts = len({request[0] for request, _ in pairs}) > 1
    choices = [str(request[0] if choices_are_prompts else request[1]).strip() for request, _ in pairs]
    lengths = [max(len(choice), 1) if metric == "acc_norm" else 1 for choice in choices]
    ranked = [value / length for (_, value), length in zip(pairs, lengths, strict=True)]
    gold = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else _text(target)
    return DocumentDescription(
        prompt="" if choices_are_prompts else str(requests[0][0]),
        gold=gold,
        answer=choices[ranked.index(max(ranked))],
    )


def _likely_answer(request: Sequence[Any], response: Sequence[Any]) -> str:
    """Return the right answer where the model would give it word for word; what it gives else is not known."""
    is_given = bool(response[1])
    return str(request[1]).strip() if is_given else NO_ANSWER.format(_loglikelihood(response))


def _are_likelihoods(responses: Sequence[Any]) -> bool:
    first = responses[0]
    return isinstance(first, float) or (
        isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[1], bool | int)
    )


def _loglikelihood(response: Any) -> float:
    return float(response[0] if isinstance(response, tuple | list) else response)


def _text(value: Any) -> str:
    return " | ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)
