"""How a written answer is compared with the right one: SQuAD's exact match and F1.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", arXiv:1606.05250. Both are kind to
spelling and blind to signs ("-5" equals "5"); the strict score of an answer is its tokens' likelihood.
"""

import re
import string
from collections import Counter

PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return ``text`` in lower case, without punctuation and articles, with single spaces.

    One departure from SQuAD's script: a step that would leave nothing is not taken. The answer "A" to a question of
    choices is no article, and the answer "+" no punctuation; else they would equal an empty answer.
    """
    text = " ".join(text.lower().split())
    for pattern, instead in ((PUNCTUATION, ""), (ARTICLES, " ")):
        text = " ".join(pattern.sub(instead, text).split()) or text
    return text


def answer_f1(gold: str, answer: str) -> float:
    """Return the F1 score of an answer's words, 0 to 1: ``2 * shared / (words of gold + words of the answer)``.

    Words are those of :func:`normalize_answer`, compared as bags. Two empty answers are equal.
    """
    gold_words, words = (Counter(normalize_answer(text).split()) for text in (gold, answer))
    total = gold_words.total() + words.total()
    return 2 * (gold_words & words).total() / total if total else 1.0
