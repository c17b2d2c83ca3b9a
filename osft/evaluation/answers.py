"""One document of lm-eval's log as people read it: the question, the right answer, the model's answer.

lm-eval logs requests and responses, whose shape follows the kind of task: texts for generation, pairs of
(log-likelihood, is the most likely text) for everything that is scored by likelihood. What kind it is shows in the
requests: generation settings are a mapping, and the held-out rows send token ids beside the texts. Responses say
less, since a task's filters may turn them into anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_ANSWER = "(another text is more likely; log-likelihood of this answer: {:.2f})"
NO_TEXT = "(no text)"
OTHER_TOKENS = "(the same text, but not the same tokens)"
NO_SUCH_CHOICE = "(choice {} of {}, which does not exist)"

TURN_PARTS = 4
"""Parts of a request that scores a turn of a held-out row: two texts, and the same as token ids."""


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
    if len(requests[0]) == TURN_PARTS:
        return _conversation(requests, responses)
    prompt, gold = str(requests[0][0]), _text(sample["target"])
    texts = [response for request, response in zip(requests, responses, strict=True) if _is_generation(request)]
    if texts:
        return DocumentDescription(prompt=prompt, gold=gold, answer=_text(texts))
    if len(requests[0]) == 1:
        return DocumentDescription(prompt="", gold=gold, answer=f"log-likelihood {_loglikelihood(responses[0]):.2f}")
    if len(requests) == 1:
        return DocumentDescription(prompt=prompt, gold=gold, answer=_likely_answer(requests[0], responses[0]))
    return _multiple_choice(sample, metric)


def _conversation(requests: Sequence[Sequence[Any]], responses: Sequence[Any]) -> DocumentDescription:
    """Describe a held-out row: its turns, of which the model may have written the last one.

    The prompt is what comes before the last turn; it holds the questions of all of them.
    """
    scored = [pair for pair in zip(requests, responses, strict=True) if len(pair[0]) == TURN_PARTS]
    answers = [_likely_answer(request, response) for request, response in scored]
    if len(requests) > len(scored):
        answers[-1] = _written_answer(*scored[-1], settings=requests[-1][-1], written=responses[-1])
    return DocumentDescription(
        prompt=str(scored[-1][0][0]),
        gold=_numbered([str(request[1]).strip() for request, _ in scored]),
        answer=_numbered(answers),
    )


def _written_answer(
    request: Sequence[Any], response: Sequence[Any], *, settings: Mapping[str, Any], written: Any
) -> str:
    """Return the written text, marked if it reads like the right answer but is not scored as that."""
    text, gold = _text(written).strip() or NO_TEXT, str(request[1]).strip()
    for end_of_turn in settings["until"]:
        gold = gold.removesuffix(end_of_turn).strip()
    return f"{text}\n{OTHER_TOKENS}" if text == gold and not response[1] else text


def _likely_answer(request: Sequence[Any], response: Sequence[Any]) -> str:
    """Return the right answer where the model would give it word for word; what it gives else is not known."""
    is_given = bool(response[1])
    return str(request[1]).strip() if is_given else NO_ANSWER.format(_loglikelihood(response))


def _numbered(turns: Sequence[str]) -> str:
    """Return the turns of a conversation below each other; one alone needs no number."""
    if len(turns) == 1:
        return turns[0]
    return "\n".join(f"[turn {number} of {len(turns)}] {turn}" for number, turn in enumerate(turns, start=1))


def _multiple_choice(sample: Mapping[str, Any], metric: str) -> DocumentDescription:
    """Describe a choice between texts: after one prompt, or of prompts before one text (winogrande)."""
    pairs = list(zip(sample["arguments"], map(_loglikelihood, sample["filtered_resps"]), strict=True))
    # acc_mutual_info adds requests without a context, for the same choices; blimp's choices never have one.
    pairs = [(request, value) for request, value in pairs if request[0]] or pairs
    choices_are_prompts = len({request[0] for request, _ in pairs}) > 1
    choices = [(str(request[0]) if choices_are_prompts else "") + str(request[1]) for request, _ in pairs]
    choices = [choice.strip() for choice in choices]
    ranked = [value / _length(choice, metric) for (_, value), choice in zip(pairs, choices, strict=True)]
    answer = choices[ranked.index(max(ranked))]
    if choices_are_prompts:
        gold = _gold_prompt(choices, answer, target=sample["target"], score=sample.get(metric))
        return DocumentDescription(prompt="", gold=gold, answer=answer)
    return DocumentDescription(prompt=str(pairs[0][0][0]), gold=_gold_choice(choices, sample["target"]), answer=answer)


def _length(choice: str, metric: str) -> int:
    """Return what a metric divides a choice's log-likelihood by."""
    if metric == "acc_norm":
        return max(len(choice), 1)
    return max(len(choice.encode()), 1) if metric == "acc_bytes" else 1


def _gold_choice(choices: Sequence[str], target: Any) -> str:
    """Return the right choice, or choices, which lm-eval names by number or by text."""
    if isinstance(target, list | tuple):
        return " | ".join(_gold_choice(choices, one) for one in target)
    if not isinstance(target, int):
        return _text(target)
    return choices[target] if 0 <= target < len(choices) else NO_SUCH_CHOICE.format(target, len(choices))


def _gold_prompt(choices: Sequence[str], answer: str, *, target: Any, score: Any) -> str:
    """Return the right one of several prompts.

    lm-eval logs the text after them as the target, so that only the score tells which is right.
    """
    others = [choice for choice in choices if choice != answer]
    if score == 1:
        return answer
    return others[0] if score == 0 and len(others) == 1 else _gold_choice(choices, target)


def _is_generation(request: Sequence[Any]) -> bool:
    return len(request) > 1 and isinstance(request[1], Mapping)


def _loglikelihood(response: Any) -> float:
    """Return the log-likelihood in a response: a number, a pair that it leads, or the first of several pairs."""
    return _loglikelihood(response[0]) if isinstance(response, tuple | list) else float(response)


def _text(value: Any) -> str:
    """Return what a task calls an answer, which may be several, nested, or nothing, as text."""
    if isinstance(value, list | tuple):
        return " | ".join(map(_text, value)) or NO_TEXT
    return NO_TEXT if value is None or value == "" else str(value)
