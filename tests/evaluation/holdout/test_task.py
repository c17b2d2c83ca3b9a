from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from osft.errors import EvaluationError
from osft.evaluation.answers import NO_TEXT
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.harness import measure
from osft.evaluation.holdout import HoldoutRow, HoldoutTask
from osft.evaluation.holdout.task import GENERATED_ROWS, SHORT_ANSWER_TOKENS, token_perplexity
from osft.evaluation.measurement import TaskMeasurement
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import find_model
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import RequestedTask

END = 2
"""``<|im_end|>`` of the tests' tokenizer."""


def make_row(ids: list[int], *turns: tuple[int, int], number: int = 1, is_plain_text: bool = False) -> HoldoutRow:
    return HoldoutRow(
        row=number, input_ids=np.array(ids, dtype=np.int32), turns=tuple(turns), is_plain_text=is_plain_text
    )


@pytest.fixture(scope="module")
def tokenizer(kit: Any) -> Any:
    return kit.byte_tokenizer()


def make_chat(tokenizer: Any, *messages: str) -> HoldoutRow:
    """Questions and answers, one after the other; every answer is trained with its end of turn."""
    ids: list[int] = []
    turns = []
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        ids += tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        start = len(ids)
        ids += tokenizer.encode(f"{answer}<|im_end|>")
        turns.append((start, len(ids)))
        ids += tokenizer.encode("\n")
    return make_row(ids, *turns)


def requests_of(task: HoldoutTask, document: int = 0) -> list[tuple]:
    requests = task.construct_requests(task.test_docs()[document], "", metadata=("holdout", document, 1))
    return [request.args for request in requests]


def run(task: HoldoutTask, model: Path, *, limit: int | None = None) -> TaskMeasurement:
    config = EvaluationConfig(tasks=("not_asked",), limit=limit, batch_size=4)
    requested = [RequestedTask(name="holdout", asked_as="holdout", kind="target", item=task)]
    with LazyModel(find_model(str(model), config), config, label="base", memo=None) as lazy:
        return measure(lazy, requested, config, apply_chat_template=False, store=MeasurementStore(None))["holdout"]


def test_row_is_right_only_if_every_turn_is(tokenizer: Any) -> None:
    task = HoldoutTask([make_row([1, 2, 3, 4], (1, 2), (3, 4))], tokenizer)

    scores = task.process_results(task.test_docs()[0], [(-1.0, True), (-3.0, False)])

    assert scores == {"acc": 0.0, "token_loglikelihood": -2.0, "perplexity": (-4.0, 2)}


def test_name_of_the_task_changes_neither_what_is_asked_nor_how_it_is_scored(tokenizer: Any) -> None:
    rows = [make_row([1, 2, 3, 4], (1, 2), (3, 4))]

    own, permanent = HoldoutTask(rows, tokenizer), HoldoutTask(rows, tokenizer, name="holdout_v0001")

    assert (own.task_name, permanent.task_name) == ("holdout", "holdout_v0001")
    assert own.fingerprint == permanent.fingerprint
    assert requests_of(own) == requests_of(permanent)


def test_plain_text_has_no_right_answer_and_writes_none(tokenizer: Any) -> None:
    task = HoldoutTask([make_row([5, 6, 7, END], (1, 4), is_plain_text=True)], tokenizer)

    scores = task.process_results(task.test_docs()[0], [(-3.0, True)])

    assert scores == {"token_loglikelihood": -1.0, "perplexity": (-3.0, 3)}
    assert len(requests_of(task)) == 1


def test_each_turn_is_asked_given_all_before_it_and_the_last_is_written(tokenizer: Any) -> None:
    row = make_chat(tokenizer, "Q1", "A1", "Q2", "A2", "Q3", "A3")
    ids = row.input_ids.tolist()

    first, second, third, written = requests_of(HoldoutTask([row], tokenizer))

    one = "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n"
    three = one + "A1<|im_end|>\n" + one.replace("Q1", "Q2") + "A2<|im_end|>\n" + one.replace("Q1", "Q3")
    assert first[:2] == ("", "A1<|im_end|>")
    assert second[:2] == ("", "A2<|im_end|>")
    assert third[:2] == (three, "A3<|im_end|>")
    assert [request[2] + request[3] for request in (first, second, third)] == [ids[:end] for _, end in row.turns]
    assert written == ("", third[2], {"max_gen_toks": SHORT_ANSWER_TOKENS, "until": ["<|im_end|>"]})


@pytest.mark.parametrize(
    ("answer", "is_written"),
    [
        ("a" * (SHORT_ANSWER_TOKENS - 1) + "<|im_end|>", True),
        ("a" * SHORT_ANSWER_TOKENS + "<|im_end|>", False),
        ("yes<|im_end|>\n", True),
        ("<|im_end|>", True),
        ("cut off", False),
        ("one<|im_end|>\n and on", False),
        ("two<|im_end|>messages<|im_end|>", False),
    ],
)
def test_only_short_answers_that_end_are_written(tokenizer: Any, answer: str, is_written: bool) -> None:
    question, ids = tokenizer.encode("Q"), tokenizer.encode(answer)
    task = HoldoutTask([make_row(question + ids, (1, 1 + len(ids)))], tokenizer)

    requests = requests_of(task)

    assert len(requests) == 1 + is_written


def test_written_answer_is_compared_without_its_end(tokenizer: Any) -> None:
    task = HoldoutTask([make_chat(tokenizer, "Where?", "In Paris, France.")], tokenizer)

    [exact, close] = [
        task.process_results(task.test_docs()[0], [(-1.0, False), text])
        for text in ("in Paris France<|im_end|>", "in Rome")
    ]

    assert (exact["acc"], exact["answer_exact_match"], exact["answer_f1"]) == (0.0, 1.0, 1.0)
    assert (close["answer_exact_match"], close["answer_f1"]) == (0.0, pytest.approx(2 / 5))


def test_number_of_written_answers_is_bounded_and_equal_rows_are_written_once(tokenizer: Any) -> None:
    chats = [make_chat(tokenizer, f"Q{number}", "A") for number in range(GENERATED_ROWS + 5)]

    many, equal = (HoldoutTask(rows, tokenizer).test_docs() for rows in (chats, chats[:1] * 5))

    assert [document["is_written"] for document in many] == [True] * GENERATED_ROWS + [False] * 5
    assert [document["is_written"] for document in equal] == [True, False, False, False, False]


def test_documents_have_an_order_of_their_own(tokenizer: Any) -> None:
    rows = [make_row([5, 6, 10 + number], (1, 3), number=number) for number in range(50)]

    forwards, backwards = (HoldoutTask(some, tokenizer) for some in (rows, rows[::-1]))

    assert forwards.test_docs() == backwards.test_docs()
    assert [document["row"] for document in forwards.test_docs()] != list(range(50))


def test_fingerprint_depends_on_the_rows(tokenizer: Any) -> None:
    rows = [make_chat(tokenizer, "Q", "A"), make_chat(tokenizer, "Q", "B")]

    [same, again, less, other] = [
        HoldoutTask(some, tokenizer).fingerprint
        for some in (rows, rows[::-1], rows[:1], [rows[0], make_chat(tokenizer, "Q", "C")])
    ]

    assert same == again
    assert len({same, less, other}) == 3


@pytest.fixture(scope="module")
def brief_model(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its turns soon: the logit of the end of turn varies more than all others."""
    folder = kit.save_model(tmp_path_factory.mktemp("brief"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[END] *= 2
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def brief_oracle(base_oracle: Any, brief_model: Path) -> Any:
    return type(base_oracle)(brief_model)


def own_answer(oracle: Any, prompt: list[int]) -> list[int]:
    """Return what the model answers, with the end of its turn."""
    answer: list[int] = []
    while END not in answer[-1:] and len(answer) < 20:
        answer += oracle.greedy(prompt + answer, 1)
    return answer


@pytest.fixture(scope="module")
def brief_holdout(kit: Any, tokenizer: Any, brief_oracle: Any) -> list[HoldoutRow]:
    """Rows of which every second has the model's own answer, and the others one that it does not give."""
    rows = []
    for number, question in enumerate(kit.questions[:12]):
        prompt = brief_oracle.prompt_ids(question)
        answer = tokenizer.encode("no such answer<|im_end|>") if number % 2 else own_answer(brief_oracle, prompt)
        rows.append(make_row([*prompt, *answer], (len(prompt), len(prompt) + len(answer)), number=number))
    return rows


@pytest.fixture(scope="module")
def measured(tokenizer: Any, brief_model: Path, brief_holdout: list[HoldoutRow]) -> TaskMeasurement:
    return run(HoldoutTask(brief_holdout, tokenizer), brief_model)


def test_written_answers_are_right_where_every_token_is_the_likeliest(measured: TaskMeasurement) -> None:
    golds = [document.gold.removesuffix("<|im_end|>").strip() or NO_TEXT for document in measured.documents]
    right = [document.answer == gold for document, gold in zip(measured.documents, golds, strict=True)]

    assert measured.metric == "acc"
    assert [document.score for document in measured.documents] == [float(one) for one in right]
    assert measured.value == measured.other_values["answer_exact_match"] == 0.5
    assert 0.5 <= measured.other_values["answer_f1"] < 1.0


def test_written_answers_are_the_models_own(tokenizer: Any, brief_oracle: Any, measured: TaskMeasurement) -> None:
    prompts = [tokenizer.encode(document.prompt) for document in measured.documents]
    expected = [tokenizer.decode(own_answer(brief_oracle, prompt)[:-1]) for prompt in prompts]

    assert [document.answer for document in measured.documents] == [text.strip() or NO_TEXT for text in expected]


def test_limit_leaves_the_first_documents(
    tokenizer: Any, brief_model: Path, brief_holdout: list[HoldoutRow], measured: TaskMeasurement
) -> None:
    few = run(HoldoutTask(brief_holdout, tokenizer), brief_model, limit=3)

    assert [one.fingerprint for one in few.documents] == [one.fingerprint for one in measured.documents[:3]]
    assert few.other_values["answer_exact_match"] == few.value


def test_only_written_rows_count_for_written_answers(
    tokenizer: Any, brief_model: Path, brief_holdout: list[HoldoutRow]
) -> None:
    long = make_row([*tokenizer.encode("q" * 100), END], (1, 101), number=99)

    mixed = run(HoldoutTask([*brief_holdout, long], tokenizer), brief_model)

    assert mixed.value == pytest.approx(6 / 13)
    assert mixed.other_values["answer_exact_match"] == 0.5


def test_conversation_shows_its_turns(kit: Any, tokenizer: Any, brief_model: Path, brief_oracle: Any) -> None:
    row = make_chat(tokenizer, "Who?", "Nobody", kit.questions[0], "no such answer")
    answer = own_answer(brief_oracle, row.input_ids[: row.turns[1][0]].tolist())
    written = tokenizer.decode(answer[:-1]).strip() or NO_TEXT

    [document] = run(HoldoutTask([row], tokenizer), brief_model).documents

    first, second = document.answer.split("\n", maxsplit=1)
    assert document.prompt.startswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nNobody<|im_end|>")
    assert document.gold == "[turn 1 of 2] Nobody<|im_end|>\n[turn 2 of 2] no such answer<|im_end|>"
    assert first.startswith("[turn 1 of 2] (another text is more likely; log-likelihood of this answer: -")
    assert second == f"[turn 2 of 2] {written}"


def test_perplexity_beyond_a_float_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"the perplexity overflows \(mean log-likelihood -1e\+06 a token\)"):
        token_perplexity([(-1e6, 1)])
