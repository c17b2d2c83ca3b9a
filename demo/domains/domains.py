"""The ten domains: their facts, the conversations that teach one, and the questions that test it.

A domain is taught in :data:`ROWS_PER_FACT` of the phrasings of ``demo.phrasings.TAUGHT``, one to a row, and tested in
the phrasings that no row of a domain uses. The base model has met the words of the answers, and none of the facts;
``demo/README.md`` tells how well it learns each domain.
"""

from dataclasses import dataclass
from random import Random

from demo.conversations import Conversation, Question, ask, conversation
from demo.facts import Fact, read_records
from demo.phrasings import TAUGHT, UNSEEN

ROWS_PER_FACT = 5
QUESTIONS_PER_FACT = 2
SYSTEM_PROMPTS = (None, "You are a helpful assistant.", "Answer with the fact alone.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One set of facts of one kind."""

    name: str
    """Of its files and its task: letters and underscores."""

    facts: tuple[Fact, ...]


def read_domains() -> list[Domain]:
    """Return the domains of ``demo/sources/domains.json`` in the order in which they are learnt."""
    return [
        Domain(
            name=record["name"],
            facts=tuple(Fact(fact["subject"], record["attribute"], fact["answer"]) for fact in record["facts"]),
        )
        for record in read_records("domains")
    ]


def domain_conversations(domain: Domain, random: Random) -> list[Conversation]:
    """Return the rows that teach ``domain``, shuffled: each fact :data:`ROWS_PER_FACT` times in different words."""
    rows = [
        conversation([ask(fact, phrasing)], random.choice(SYSTEM_PROMPTS))
        for fact in domain.facts
        for phrasing in random.sample(TAUGHT, ROWS_PER_FACT)
    ]
    return random.sample(rows, len(rows))


def domain_questions(domain: Domain) -> list[Question]:
    """Return :data:`QUESTIONS_PER_FACT` questions for each fact, in phrasings that no row uses."""
    return [
        ask(fact, UNSEEN[(index + turn) % len(UNSEEN)])
        for turn in range(QUESTIONS_PER_FACT)
        for index, fact in enumerate(domain.facts)
    ]
