from collections.abc import Callable

from osft.evaluation.pairing import DocumentPair
from osft.evaluation.report.flipped import MAX_TEXT_CHARACTERS, MAX_WORSE, became_better, became_worse, unscored_tasks

MakeDocument = Callable[..., DocumentPair]


def test_the_worst_documents_of_a_task_come_first(make_document: MakeDocument) -> None:
    documents = [make_document(number, change=change) for number, change in enumerate((-0.1, 0.5, -0.9, 0.0, None))]

    (group,) = became_worse(documents)

    assert [one["doc_id"] for one in group["documents"]] == [2, 0]
    assert group["count"] == 2


def test_the_best_documents_are_those_that_gained_most(make_document: MakeDocument) -> None:
    documents = [make_document(number, change=change) for number, change in enumerate((0.1, -0.5, 0.9))]

    (group,) = became_better(documents)

    assert [one["doc_id"] for one in group["documents"]] == [2, 0]


def test_the_task_that_lost_most_documents_comes_first(make_document: MakeDocument) -> None:
    documents = [make_document(0, task="few"), *(make_document(number, task="many") for number in range(25))]

    groups = became_worse(documents)

    assert [(group["task"], group["count"], len(group["documents"])) for group in groups] == [
        ("many", 25, 20),
        ("few", 1, 1),
    ]


def test_many_tasks_share_the_room_of_the_page(make_document: MakeDocument) -> None:
    documents = [make_document(number, task=f"task {task}") for task in range(80) for number in range(10)]

    groups = became_worse(documents)

    assert len(groups) == 80
    assert 80 <= sum(len(group["documents"]) for group in groups) <= MAX_WORSE


def test_a_change_of_rounding_alone_is_none(make_document: MakeDocument) -> None:
    changes = (-1e-9, -0.002, -0.003, 1e-9, 0.002, 0.003)
    documents = [
        make_document(number, base_score=-20.0, tuned_score=-20.0 + change, change=change)
        for number, change in enumerate(changes)
    ]

    shown = [one["doc_id"] for side in (became_worse, became_better) for one in side(documents)[0]["documents"]]

    assert shown == [2, 5]


def test_a_change_of_scores_next_to_zero_is_not_rounding(make_document: MakeDocument) -> None:
    (group,) = became_worse([make_document(0, base_score=1e-6, tuned_score=0.0, change=-1e-6), make_document(1)])

    assert group["count"] == 2


def test_tasks_whose_documents_have_no_score_are_named_once(make_document: MakeDocument) -> None:
    documents = [make_document(0), *(make_document(number, task="bleu", change=None) for number in range(3))]

    assert unscored_tasks(documents) == ["bleu"]


def test_scores_are_shown_where_they_are_more_than_right_or_wrong(make_document: MakeDocument) -> None:
    documents = [make_document(0), make_document(1, base_score=0.75, tuned_score=0.5, change=-0.25)]

    (group,) = became_worse(documents)

    assert [one["scores"] for one in group["documents"]] == [None, ("0.75", "0.5")]


def test_a_text_of_five_thousand_characters_is_whole_and_a_longer_one_keeps_its_question(
    make_document: MakeDocument,
) -> None:
    long = "start" + "x" * MAX_TEXT_CHARACTERS + "end"

    (group,) = became_worse([make_document(0, prompt="y" * 5_000), make_document(1, prompt=long, tuned_answer=long)])

    whole, cut = group["documents"]
    assert whole["prompt"] == "y" * 5_000
    assert cut["prompt"].startswith("…xxx")
    assert cut["prompt"].endswith("xend")
    assert cut["tuned_answer"].startswith("startx")
    assert cut["tuned_answer"].endswith("x…")
