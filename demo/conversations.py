"""The conversations of the demo: an endless stream for the base model, a fixed data set about the elements to learn.

OSFT moves neither the embeddings nor the head, so the base model must be able to read and write the words of the new
domain before it learns anything about them. The stream therefore holds word exercises besides the facts about
countries: repeat a word, count on, give the last letter or the number of letters. The names of the elements, their
symbols and numbers occur in these, each drawn by itself, and never with the fact that joins them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from demo.facts import Fact, country_facts, element_facts
from demo.phrasings import (
    COUNTRY_SYSTEM_PROMPTS,
    ELEMENT_SYSTEM_PROMPTS,
    FOLLOW_UPS,
    PHRASINGS,
    TAUGHT,
    UNSEEN,
)

Message = dict[str, str]
Conversation = list[Message]

# To krypton, the end of the fourth period: as many as a model of this size learns in a minute on two cores.
ELEMENTS_TO_LEARN = 36
PHRASINGS_PER_ELEMENT_FACT = 3
HIGHEST_NUMBER = 130
CALIBRATION_CONVERSATIONS = 300
SYSTEM_PROMPT_SHARE = 0.4
FOLLOW_UP_SHARE = 0.5
TURN_WEIGHTS = {1: 6, 2: 3, 3: 1}
KIND_WEIGHTS = {"country": 6, "spelling": 2, "exercise": 2}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer, and the subject that a follow-up may refer to."""

    text: str
    answer: str
    subject: str | None = None


def ask(fact: Fact, phrasing: str) -> Question:
    """Return the question for ``fact`` in one of the phrasings."""
    return Question(phrasing.format(attribute=fact.attribute, subject=fact.subject), fact.answer, fact.subject)


def conversation(questions: list[Question], system_prompt: str | None) -> Conversation:
    """Return the messages of a chat that asks ``questions`` one after the other."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for question in questions:
        messages.append({"role": "user", "content": question.text})
        messages.append({"role": "assistant", "content": question.answer})
    return messages


def country_questions() -> list[Question]:
    """Return one question for each fact about countries, the phrasings in turn: the retention tasks."""
    return ask_in_turn(country_facts(), PHRASINGS, facts_per_subject=3)


def element_questions() -> list[Question]:
    """Return questions for the facts to learn, in phrasings that the data set does not use: the target task."""
    return [
        question
        for start in range(PHRASINGS_PER_ELEMENT_FACT)
        for question in ask_in_turn(facts_to_learn(), UNSEEN[start:] + UNSEEN[:start], facts_per_subject=2)
    ]


def facts_to_learn() -> list[Fact]:
    """Return the facts about the first elements, two for each."""
    return element_facts()[: 2 * ELEMENTS_TO_LEARN]


def ask_in_turn(facts: list[Fact], phrasings: tuple[str, ...], *, facts_per_subject: int) -> list[Question]:
    """Return a question for each fact; each attribute goes through all phrasings, from subject to subject."""
    return [
        ask(fact, phrasings[sum(divmod(index, facts_per_subject)) % len(phrasings)]) for index, fact in enumerate(facts)
    ]


def calibration_conversations(random: Random) -> list[Conversation]:
    """Return conversations that stand for what the base model must keep."""
    return list(islice(base_conversations(random), CALIBRATION_CONVERSATIONS))


def element_conversations(random: Random) -> list[Conversation]:
    """Return the data set to learn: each fact seven times, in different words and different rows.

    Each fact is asked three times by itself, twice in a chat that asks both facts of an element, and twice in a chat
    about three elements. No row asks for the same fact twice, and no question contains the answer to another, so a
    held-out row does not give its own answers away.
    """
    facts = facts_to_learn()
    questions = {fact: iter([ask(fact, phrasing) for phrasing in seven_phrasings(random)]) for fact in facts}
    rows = [[next(questions[fact])] for fact in facts for _ in range(3)]
    for symbol, number in zip(facts[::2], facts[1::2], strict=True):
        rows += [[next(questions[fact]) for fact in order] for order in ((symbol, number), (number, symbol))]
    for same_attribute in (facts[::2], facts[1::2]) * 2:
        shuffled = random.sample(same_attribute, len(same_attribute))
        chats = [shuffled[start : start + 3] for start in range(0, len(shuffled), 3)]
        rows += [[next(questions[fact]) for fact in chat] for chat in chats]
    random.shuffle(rows)
    return [conversation(row, random.choice((None, *ELEMENT_SYSTEM_PROMPTS))) for row in rows]


def seven_phrasings(random: Random) -> list[str]:
    """Return phrasings of both orders of subject and attribute, which a model learns apart."""
    subject_first = [phrasing for phrasing in TAUGHT if is_subject_first(phrasing)]
    others = [phrasing for phrasing in TAUGHT if not is_subject_first(phrasing)]
    chosen = [*random.sample(subject_first, 2), *random.sample(others, 5)]
    return random.sample(chosen, len(chosen))


def is_subject_first(phrasing: str) -> bool:
    """Return whether a phrasing names the subject before the attribute."""
    return phrasing.index("{subject}") < phrasing.index("{attribute}")


def base_conversations(random: Random) -> Iterator[Conversation]:
    """Yield conversations for the base model without end; none holds a question of the demo's tasks."""
    exam = {question.text for question in country_questions()}
    countries, spellings = by_subject(country_facts()), by_subject(spelling_facts())
    exercises = word_exercises()
    system_prompts = sorted({*COUNTRY_SYSTEM_PROMPTS, *ELEMENT_SYSTEM_PROMPTS})
    while True:
        questions: list[Question] = []
        for _ in range(draw(random, TURN_WEIGHTS)):
            last = questions[-1].subject if questions else None
            kind = draw(random, KIND_WEIGHTS)
            if last and random.random() < FOLLOW_UP_SHARE:
                fact = random.choice((countries | spellings)[last])
                questions.append(ask(fact, random.choice(FOLLOW_UPS)))
            elif kind == "exercise":
                questions.append(random.choice(exercises)(random))
            else:
                questions.append(ask_any(random, countries if kind == "country" else spellings, exam))
        has_system_prompt = random.random() < SYSTEM_PROMPT_SHARE
        yield conversation(questions, random.choice(system_prompts) if has_system_prompt else None)


def draw(random: Random, weights: dict[Any, int]) -> Any:
    """Return one of the keys, as often as its weight says."""
    return random.choices(list(weights), list(weights.values()))[0]


def by_subject(facts: list[Fact]) -> dict[str, list[Fact]]:
    """Return the facts about each subject."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.subject, []).append(fact)
    return groups


def ask_any(random: Random, facts: dict[str, list[Fact]], exam: set[str]) -> Question:
    """Return a question that is not in ``exam``, about any subject in any phrasing."""
    subjects = list(facts.values())
    while True:
        question = ask(random.choice(random.choice(subjects)), random.choice(PHRASINGS))
        if question.text not in exam:
            return question


def spelling_facts() -> list[Fact]:
    """Return two facts about the spelling of each element's name: they say nothing about the element."""
    names = [fact.subject for fact in element_facts()[::2]]
    return [
        fact
        for name in names
        for fact in (Fact(name, "last letter", name[-1].upper()), Fact(name, "letter count", str(len(name))))
    ]


def word_exercises() -> list[Callable[[Random], Question]]:
    """Return the exercises in reading and writing words, each a function that draws one question."""
    countries, elements = country_facts(), element_facts()
    names = sorted({fact.subject for fact in elements})
    symbols = sorted({fact.answer for fact in elements if not fact.answer.isdigit()})
    numbers = [str(number) for number in range(HIGHEST_NUMBER + 1)]
    attributes = sorted({fact.attribute for fact in countries + elements})
    of_countries = sorted({text for fact in countries for text in (fact.subject, fact.answer)})

    def repeat(random: Random) -> Question:
        word = random.choice(random.choice((names, symbols, numbers, attributes, of_countries)))
        return Question(f"Repeat: {word}", word)

    def count_on(random: Random) -> Question:
        number = random.randrange(HIGHEST_NUMBER)
        return Question(f"Which number follows {number}?", str(number + 1))

    return [repeat, count_on]
