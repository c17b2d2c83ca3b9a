"""The committed files of the demo agree with each other and with the code that makes them."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import orjson
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from demo.conversations import base_conversations, country_questions, element_questions, facts_to_learn
from demo.facts import ELEMENT_ATTRIBUTES, Fact, country_facts, element_facts
from demo.make_demo import DEMO, write_texts
from demo.phrasings import PHRASINGS, TAUGHT, UNSEEN
from demo.pretraining import IGNORED_LABEL, encode_conversation, encode_message
from demo.task_files import RETENTION_TASKS, TARGET_TASK, load_task

ALL_TASKS = (*RETENTION_TASKS, TARGET_TASK)
MOST_BYTES = 10_000_000
SAMPLED_CONVERSATIONS = 2_000


def read_json_lines(path: Path) -> list[dict]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_json_lines(DEMO / "data" / "elements.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO / "model")


@pytest.fixture(scope="module")
def base_sample() -> list[list[dict[str, str]]]:
    stream = base_conversations(Random(1))
    return [next(stream) for _ in range(SAMPLED_CONVERSATIONS)]


def said(messages: list[dict[str, str]], role: str) -> list[str]:
    return [message["content"] for message in messages if message["role"] == role]


def facts_asked(messages: list[dict[str, str]]) -> Iterator[Fact]:
    """Recover the facts of a conversation about elements from its words."""
    by_answer = {(fact.subject, fact.attribute, fact.answer): fact for fact in element_facts()}
    subject = ""
    for question, answer in zip(said(messages, "user"), said(messages, "assistant"), strict=True):
        words = re.findall(r"\w+", question)
        subject = next((name for name, _, _ in by_answer if name in words), subject)
        attribute = next(attribute for attribute in ELEMENT_ATTRIBUTES.values() if attribute in question)
        yield by_answer[subject, attribute, answer]


def test_the_committed_texts_are_what_the_code_makes(tmp_path: Path) -> None:
    write_texts(tmp_path)

    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path: (DEMO / path).read_bytes() for path in made}
    assert len(made) == 2 + 2 * len(ALL_TASKS)
    assert made == committed


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_task_file_names_questions_beside_it(task: str) -> None:
    config = yaml.safe_load((DEMO / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))

    loaded = load_task(DEMO / "tasks" / f"{task}.yaml")

    assert config["task"] == task
    assert config["metadata"]["version"] == 1.0
    assert config["dataset_kwargs"]["data_files"] == {"test": f"{task}.jsonl"}
    assert Path(loaded["dataset_kwargs"]["data_files"]["test"]).is_file()


@pytest.mark.parametrize(("task", "count"), [*((task, 179) for task in RETENTION_TASKS), (TARGET_TASK, 216)])
def test_a_task_asks_a_question_for_every_fact(task: str, count: int) -> None:
    questions = read_json_lines(DEMO / "tasks" / f"{task}.jsonl")

    assert len(questions) == count
    assert len({question["question"] for question in questions}) == count


def test_every_task_uses_all_of_its_phrasings() -> None:
    facts = [*country_facts(), *facts_to_learn() * len(UNSEEN)]
    questions = [*country_questions(), *element_questions()]

    used: dict[str, set[str]] = {}
    for fact, question in zip(facts, questions, strict=True):
        plain = question.text.replace(fact.subject, "{subject}").replace(fact.attribute, "{attribute}")
        used.setdefault(fact.attribute, set()).add(plain)

    assert used.pop("chemical symbol") == used.pop("atomic number") == set(UNSEEN)
    assert all(phrasings == set(PHRASINGS) for phrasings in used.values())


def test_no_phrasing_of_the_new_task_occurs_in_the_data_set(rows: list[dict]) -> None:
    asked = {text for row in rows for text in said(row["messages"], "user")}
    exam = {question["question"] for question in read_json_lines(DEMO / "tasks" / f"{TARGET_TASK}.jsonl")}
    openings = tuple(phrasing.split("{")[0] for phrasing in UNSEEN)

    assert exam
    assert not asked & exam
    assert not [text for text in asked if text.startswith(openings)]
    assert not set(UNSEEN) & set(TAUGHT)


def test_no_question_of_a_task_occurs_in_what_the_base_model_hears(base_sample: list[list[dict[str, str]]]) -> None:
    exam = {question.text for question in (*country_questions(), *element_questions())}

    heard = {text for messages in base_sample for text in said(messages, "user")}

    assert not heard & exam


def test_the_base_model_never_hears_a_fact_about_an_element(base_sample: list[list[dict[str, str]]]) -> None:
    taught_attributes = ("chemical symbol", "atomic number")

    asked = {text for messages in base_sample for text in said(messages, "user") if text.lower().endswith(("?", "."))}

    assert not [text for text in asked if any(attribute in text.lower() for attribute in taught_attributes)]


def test_the_data_set_teaches_every_fact_in_seven_rows(rows: list[dict]) -> None:
    facts = [list(facts_asked(row["messages"])) for row in rows]

    times = Counter(fact for row in facts for fact in row)

    assert set(times.values()) == {7}
    assert set(times) == set(facts_to_learn())
    assert all(len(set(row)) == len(row) for row in facts)


def test_no_row_says_an_answer_before_it_is_asked_for(rows: list[dict]) -> None:
    for row in rows:
        messages = row["messages"]
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                assert message["content"] not in said(messages[:index], "assistant")


def test_the_data_set_has_system_prompts_and_several_turns(rows: list[dict]) -> None:
    turns = Counter(len(said(row["messages"], "user")) for row in rows)
    with_system_prompt = sum(row["messages"][0]["role"] == "system" for row in rows)

    assert turns == {1: 216, 2: 72, 3: 48}
    assert with_system_prompt > len(rows) / 2


def test_a_conversation_survives_the_tokenizer(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]

    decoded = [tokenizer.decode(ids) for ids in tokenizer(texts).input_ids]

    assert decoded == texts


def test_the_start_of_a_conversation_renders_as_the_start_of_its_text(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase
) -> None:
    longest = max((row["messages"] for row in rows), key=len)
    text = tokenizer.apply_chat_template(longest, tokenize=False)

    for length in range(1, len(longest) + 1):
        start = tokenizer.apply_chat_template(longest[:length], tokenize=False)
        assert text.startswith(start)
    prompt = tokenizer.apply_chat_template(longest[:-1], tokenize=False, add_generation_prompt=True)
    assert text == f"{prompt}{longest[-1]['content']}<|im_end|>\n"


def test_pretraining_sees_the_tokens_of_the_chat_template(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> None:
    messages = max((row["messages"] for row in rows), key=len)

    ids, labels = encode_conversation(lambda role, content: encode_message(tokenizer, role, content), messages)

    trained = tokenizer.decode([label for label in labels if label != IGNORED_LABEL])
    assert ids == tokenizer.apply_chat_template(messages)["input_ids"]
    assert trained == "".join(f"{answer}<|im_end|>" for answer in said(messages, "assistant"))


def test_the_base_model_answers_about_countries_and_not_about_elements(tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    questions = [*country_questions()[::20], *element_questions()[::20]]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]

    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    generated = model.generate(**batch, max_new_tokens=12)[:, batch.input_ids.shape[1] :]

    answers = tokenizer.batch_decode(generated, skip_special_tokens=True)
    right = [answer == question.answer for answer, question in zip(answers, questions, strict=True)]
    num_countries = len(country_questions()[::20])
    assert sum(right[:num_countries]) >= num_countries - 1
    assert sum(right[num_countries:]) <= 1


def test_the_measured_base_model_knows_the_countries_and_no_element() -> None:
    measured = orjson.loads((DEMO / "measured.json").read_bytes())

    scores = measured["base_exact_match"]

    assert all(scores[task] >= 0.95 for task in RETENTION_TASKS)
    assert scores[TARGET_TASK] <= 0.02


def test_the_demo_is_small_enough_for_git() -> None:
    sizes = [path.stat().st_size for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]

    assert sum(sizes) <= MOST_BYTES
