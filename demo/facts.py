"""The facts of the demo: what the base model knows (countries), and what it is to learn (chemical elements).

The facts lie in ``demo/sources/*.json`` with their source; ``collect_facts.py`` says how they were collected.
A :class:`Fact` is a triple that a question can be made of: "What is the <attribute> of <subject>?" - "<answer>".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

SOURCES = Path(__file__).parent / "sources"

# The field of a country or an element, and the words by which a question names it.
COUNTRY_ATTRIBUTES = {"code": "country code", "capital": "capital", "currency": "currency code"}
ELEMENT_ATTRIBUTES = {"symbol": "chemical symbol", "number": "atomic number"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer to one question."""

    subject: str
    """The country or the element."""

    attribute: str
    """What is asked of it, in words."""

    answer: str


def country_facts() -> list[Fact]:
    """Return the facts that the base model knows, country by country."""
    return facts_of(read_records("countries"), COUNTRY_ATTRIBUTES)


def element_facts() -> list[Fact]:
    """Return the facts that the base model does not know and is to learn, element by element."""
    return facts_of(read_records("elements"), ELEMENT_ATTRIBUTES)


def read_records(name: str) -> list[dict[str, Any]]:
    """Return the records of ``demo/sources/<name>.json``."""
    records: list[dict[str, Any]] = orjson.loads((SOURCES / f"{name}.json").read_bytes())[name]
    return records


def facts_of(records: list[dict[str, Any]], attributes: dict[str, str]) -> list[Fact]:
    """Return one fact for each record and attribute."""
    return [
        Fact(record["name"], words, str(record[field])) for record in records for field, words in attributes.items()
    ]
