"""What the registry is told of a version."""

import pytest

from osft.registration.description import describe_model, describe_version, properties_of
from osft.versions.lineage import Lineage
from tests.registration.versions import judged
from tests.versions.chains import make_lineage, make_score


def version(number: int, **evaluation: object) -> Lineage:
    return make_lineage(number, [make_score("arc_easy", 0.7)], evaluation=judged(number) | evaluation)


def test_one_sentence_says_what_was_learnt_gained_and_forgotten() -> None:
    sentence = describe_version(version(3))

    assert sentence == (
        "Learnt s3://bucket/domains/3.jsonl (303 rows) from v0002, gained 93.0 points on it, forgot 1.2 points of "
        "what it knew (at most 3.1 with 95% confidence), 3.9 against the best of all versions before it."
    )


def test_the_first_version_has_learnt_from_the_origin() -> None:
    sentence = describe_version(version(1))

    assert " from org/base-model, " in sentence
    assert "best of all versions" not in sentence


def test_a_version_without_target_tasks_is_not_said_to_have_gained() -> None:
    sentence = describe_version(version(1, target_gain=None))

    assert "gained" not in sentence


def test_the_model_is_described_by_its_origin() -> None:
    sentence = describe_model(version(1))

    assert sentence.startswith("Made from org/base-model by ")


def test_the_lineage_is_the_whole_chain() -> None:
    chain = [make_lineage(0, [], parent=None), version(1), version(2), version(3)]

    properties = properties_of(chain)

    assert properties["lineage"] == "org/base-model -> v0001 -> v0002 -> v0003"
    assert (properties["parent"], properties["run_id"]) == ("v0002", "6f1c2b0e-0000-4000-8000-000000000003")


def test_settings_data_and_scores_keep_their_types() -> None:
    properties = properties_of([version(1), version(2)])

    expected = {
        "data_uri": "s3://bucket/domains/2.jsonl", "data_rows": 302, "unfreeze_rank_ratio": 0.25, "learning_rate": 1e-4,
        "forgetting": 0.012, "forgetting_upper": 0.031, "cumulative_forgetting": 0.039, "target_gain": 0.93,
        "passed": True, "average_accuracy": 0.9, "score.arc_easy": 0.7,
    }  # fmt: skip
    assert expected.items() <= properties.items()
    assert properties["passed"] is True


def test_a_setting_that_was_given_as_a_whole_number_is_registered_like_any_other() -> None:
    trained = version(1)
    trained.parameters["training"].update(unfreeze_rank_ratio=1, num_epochs=2)

    properties = properties_of([trained])

    assert [type(properties[name]) for name in ("unfreeze_rank_ratio", "num_epochs")] == [float, int]


@pytest.mark.parametrize("name", ["backward_transfer", "cumulative_forgetting", "seed", "data_revision"])
def test_what_is_not_known_or_not_finite_is_left_out(name: str) -> None:
    properties = properties_of([version(1)])

    assert name not in properties


def test_a_bound_that_nothing_was_known_for_is_left_out() -> None:
    without = version(1, tasks=[{"kind": "retention", "loss_upper": None}, {"kind": "target", "loss_upper": 0.1}])

    properties = properties_of([without])

    assert "forgetting_upper" not in properties
    assert "95%" not in describe_version(without)
