"""The committed files of the domains agree with their facts, and the base model can write their answers."""

from pathlib import Path
from random import Random

import pytest

from demo.conversations import HIGHEST_NUMBER
from demo.domains.domains import Domain, domain_conversations, domain_questions, read_domains
from demo.domains.make_domains import FOLDER, make_domains
from demo.facts import country_facts, element_facts
from demo.task_files import load_task

DOMAINS = read_domains()


def test_the_committed_texts_are_what_the_code_makes(tmp_path: Path) -> None:
    make_domains(tmp_path)

    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 3 * len(DOMAINS)
    assert made == {path: (FOLDER / path).read_bytes() for path in made}


def test_there_are_ten_domains_and_no_fact_is_in_two() -> None:
    facts = [(fact.subject, fact.attribute) for domain in DOMAINS for fact in domain.facts]

    assert len(DOMAINS) == 10
    assert len(set(facts)) == len(facts) == 300


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_no_question_of_a_task_is_among_the_rows(domain: Domain) -> None:
    taught = {row[-2]["content"] for row in domain_conversations(domain, Random(0))}

    asked = {question.text for question in domain_questions(domain)}

    assert len(asked) == 2 * len(domain.facts)
    assert taught.isdisjoint(asked)


def test_every_answer_is_a_word_that_the_base_model_was_trained_to_write() -> None:
    numbers = {str(number) for number in range(HIGHEST_NUMBER + 1)}
    words = {text for fact in country_facts() + element_facts() for text in (fact.subject, fact.answer)}

    answers = {fact.answer for domain in DOMAINS for fact in domain.facts}

    assert answers - words - numbers == set()


def test_a_domains_task_finds_its_questions_beside_it() -> None:
    task = load_task(FOLDER / "tasks" / f"{DOMAINS[0].name}.yaml")

    assert task["task"] == DOMAINS[0].name
    assert Path(task["dataset_kwargs"]["data_files"]["test"]).is_file()
