import pytest

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.cumulative import BestComparison, CumulativeOutcome
from osft.evaluation.forgetting import Kind, Outcome, TaskComparison
from osft.evaluation.gate import judge


def task(
    lost: float,
    upper: float | None,
    *,
    name: str = "facts",
    asked_as: str = "facts",
    kind: Kind = "retention",
    base: float = 0.9,
    n: int = 100,
) -> TaskComparison:
    return TaskComparison(
        task=name,
        asked_as=asked_as,
        kind=kind,
        metric="acc",
        base=base,
        tuned=base - lost,
        delta=-lost,
        loss_upper=upper,
        n=n,
    )


def outcome(
    forgetting: float,
    upper: float,
    *,
    gain: float | None = 0.3,
    tasks: tuple[TaskComparison, ...] = (),
    unbounded: tuple[str, ...] = (),
    too_few: tuple[str, ...] = (),
) -> Outcome:
    return Outcome(
        tasks=tasks or (task(forgetting, upper),),
        forgetting=forgetting,
        forgetting_upper=upper,
        unbounded_tasks=unbounded,
        too_few_documents=too_few,
        target_gain=gain,
        backward_transfer=-forgetting,
        average_accuracy_base=None,
        average_accuracy_tuned=None,
    )


def limits(**fields: object) -> EvaluationConfig:
    values = {"tasks": ("facts",), "target_tasks": ("new",), "max_forgetting": 0.05, "min_target_gain": 0.3} | fields
    return EvaluationConfig(**values)  # type: ignore[arg-type]


def test_gate_passes_exactly_at_its_limits() -> None:
    verdict = judge(outcome(0.95 - 0.93, 0.95 - 0.90, gain=0.4 - 0.1), limits())

    assert verdict.passed
    assert verdict.reasons == (
        "Forgetting is 2.0 points and, with 95% confidence, at most 5.0 points: within the limit of 5.0 points.",
        "The gain on the new data is 30.0 points, no less than the 30.0 points asked for.",
    )


def test_small_sample_does_not_pass_by_luck() -> None:
    verdict = judge(outcome(0.0, 0.28), limits())

    assert not verdict.passed
    assert verdict.reasons[0] == (
        "Forgetting is 0.0 points, within the limit of 5.0 points, but up to 28.0 points cannot be ruled out "
        "(95% confidence): more documents would decide."
    )


def test_loss_above_the_limit_does_not_pass() -> None:
    verdict = judge(outcome(0.15, 0.2), limits())

    assert not verdict.passed
    assert verdict.reasons[0] == (
        "Forgetting is 15.0 points, above the limit of 5.0 points (at most 20.0 with 95% confidence)."
    )


@pytest.mark.parametrize(
    ("forgetting", "sentence"),
    [
        (1e14, "more than 1,000 points, above the limit of 5.0 points (no bound below 1,000 with 95% confidence)."),
        (0.0, "0.0 points, within the limit of 5.0 points, but more than 1,000 points cannot be ruled out (95% conf"),
    ],
)
def test_loss_of_a_broken_model_is_not_written_in_digits(forgetting: float, sentence: str) -> None:
    verdict = judge(outcome(forgetting, 2e14), limits())

    assert not verdict.passed
    assert verdict.reasons[0].startswith(f"Forgetting is {sentence}")


@pytest.mark.parametrize(
    ("unbounded", "named"), [(("bleu",), "For bleu, whose score"), (("a", "b", "c"), "For a, b and c, whose score")]
)
def test_what_could_not_be_bounded_is_said(unbounded: tuple[str, ...], named: str) -> None:
    verdict = judge(outcome(0.0, 0.01, unbounded=unbounded), limits())

    assert verdict.passed
    assert (
        f"at most 1.0 points: within the limit of 5.0 points. {named} cannot be taken apart into documents, chance "
        "could not be bounded: the measured change counts as it is."
    ) in verdict.reasons[0]


@pytest.mark.parametrize(("lost", "passed", "relation"), [(0.02, True, "within"), (0.2, False, "above")])
def test_no_confidence_is_named_where_no_task_is_bounded(lost: float, passed: bool, relation: str) -> None:
    tasks = (task(lost, None, name="bleu"), task(-0.3, 0.0, name="new", kind="target"))

    verdict = judge(outcome(lost, lost, tasks=tasks, unbounded=("bleu",)), limits())

    assert verdict.passed == passed
    assert verdict.reasons[0].startswith(
        f"Forgetting is {100 * lost:.1f} points, {relation} the limit of 5.0 points. For bleu, whose score"
    )
    assert "confidence" not in verdict.reasons[0]


def test_one_document_of_a_score_without_limits_does_not_pass() -> None:
    tasks = (task(0.0, None, name="prose", n=1),)

    verdict = judge(outcome(0.0, 0.0, tasks=tasks, too_few=("prose",)), limits())

    assert not verdict.passed
    assert verdict.reasons[:2] == (
        "Forgetting is 0.0 points, within the limit of 5.0 points.",
        "There are too few documents in prose: one document does not tell what was lost. Raise the limit of documents, "
        "or leave the task out.",
    )


@pytest.mark.parametrize("upper", [0.01, 0.3])
def test_one_document_does_not_pass_beside_tasks_that_are_bounded(upper: float) -> None:
    tasks = (task(0.0, upper), task(0.0, None, name="prose", n=1))

    verdict = judge(outcome(0.0, upper, tasks=tasks, too_few=("prose",)), limits())

    assert not verdict.passed
    assert verdict.reasons[0] == "Forgetting is 0.0 points, within the limit of 5.0 points."
    assert verdict.reasons[1].startswith("There are too few documents in prose")


def test_limit_of_a_task_with_too_few_documents_is_not_met() -> None:
    tasks = (task(0.0, None, n=1),)

    verdict = judge(outcome(0.0, 0.0, tasks=tasks, too_few=("facts",)), limits(task_limits={"facts": 0.5}))

    assert not verdict.passed
    assert verdict.reasons[2] == "facts has the limit of 50.0 points, and too few documents to tell whether it is kept."


def test_base_that_answers_nothing_right_is_said_and_does_not_fail() -> None:
    verdict = judge(outcome(0.0, 0.002, tasks=(task(0.0, 0.002, name="gsm8k", base=0.0),)), limits())

    assert verdict.passed
    assert verdict.reasons[1] == "The base answers nothing right in gsm8k: nothing can be lost there."


def test_too_small_a_gain_does_not_pass() -> None:
    verdict = judge(outcome(0.0, 0.01, gain=0.1), limits())

    assert not verdict.passed
    assert "The gain on the new data is 10.0 points, below the 30.0 points asked for." in verdict.reasons


def test_gain_is_not_asked_for_without_a_target() -> None:
    verdict = judge(outcome(0.0, 0.01, gain=None), limits(target_tasks=(), min_target_gain=0.0))

    assert verdict.passed
    assert "was not measured" in verdict.reasons[1]


@pytest.mark.parametrize(
    ("upper", "passed", "reason"),
    [
        (0.02, True, "facts lost 1.0 points and, with 95% confidence, at most 2.0 points: within the limit of 2.0"),
        (0.03, False, "facts lost 1.0 points, within the limit of 2.0 points, but up to 3.0 points cannot be ruled"),
        (None, True, "facts lost 1.0 points, within its limit of 2.0 points; chance could not be bounded for it."),
    ],
)
def test_limit_of_a_task_is_on_its_bound(upper: float | None, passed: bool, reason: str) -> None:
    verdict = judge(outcome(0.01, 0.02, tasks=(task(0.01, upper),)), limits(task_limits={"facts": 0.02}))

    assert verdict.passed == passed
    assert verdict.reasons[1].startswith(reason)


def test_task_that_lost_more_than_its_limit_does_not_pass_though_its_chance_is_unbounded() -> None:
    verdict = judge(outcome(0.01, 0.02, tasks=(task(0.03, None),)), limits(task_limits={"facts": 0.02}))

    assert not verdict.passed
    assert "facts lost 3.0 points, above its limit of 2.0 points" in verdict.reasons[1]


def test_limit_of_a_tag_holds_for_each_of_its_tasks() -> None:
    tasks = tuple(task(0.0, upper, name=name, asked_as="tag") for name, upper in (("one", 0.01), ("two", 0.3)))

    verdict = judge(outcome(0.0, 0.01, tasks=tasks), limits(tasks=("tag",), task_limits={"tag": 0.02}))

    assert not verdict.passed
    assert [reason.split()[0] for reason in verdict.reasons] == ["Forgetting", "one", "two", "The"]


def test_limit_of_a_task_that_was_not_compared_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="task_limits names 'facts', which was not compared"):
        judge(outcome(0.0, 0.01, tasks=(task(0.0, 0.01, asked_as="tag"),)), limits(task_limits={"facts": 0.02}))


def test_gain_of_a_task_is_no_loss() -> None:
    verdict = judge(outcome(0.0, 0.01, tasks=(task(-0.1, 0.0),)), limits(task_limits={"facts": 0.0}))

    assert verdict.passed
    assert "facts lost 0.0 points" in verdict.reasons[1]


def chain(cumulative: float, upper: float, *tasks: tuple[str, TaskComparison]) -> CumulativeOutcome:
    return CumulativeOutcome(
        cumulative_forgetting=cumulative,
        cumulative_forgetting_upper=upper,
        best_tasks=tuple(
            BestComparison(version=version, compared_with=("v0001", "v0002"), comparison=comparison)
            for version, comparison in tasks or (("v0001", task(cumulative, upper)),)
        ),
        origin_forgetting=None,
        origin_forgetting_upper=None,
        origin_tasks=(),
    )


def test_small_losses_that_stay_within_the_cumulative_limit_pass() -> None:
    verdict = judge(outcome(0.01, 0.03), limits(), chain(0.05, 0.1))

    assert verdict.passed
    assert verdict.reasons[1] == (
        "Forgetting since each task's best version is 5.0 points and, with 95% confidence, at most 10.0 points: within "
        "the limit of 10.0 points."
    )


def test_losses_that_added_up_are_named_with_their_versions_worst_first() -> None:
    tasks = [
        ("v0001", task(0.02, 0.05, name="dates")),
        ("v0002", task(0.3, 0.4, name="names")),
        ("origin", task(0.2, 0.3)),
        ("v0001", task(-0.1, 0.0, name="gained")),
        ("v0001", task(0.01, 0.1, name="fourth")),
    ]

    verdict = judge(outcome(0.01, 0.03), limits(), chain(0.106, 0.15, *tasks))

    assert not verdict.passed
    assert verdict.reasons[1] == (
        "Forgetting since each task's best version is 10.6 points, above the limit of 10.0 points (at most 15.0 with "
        "95% confidence). Most was lost in names (30.0 points since v0002), facts (20.0 points since the origin) and "
        "dates (2.0 points since v0001)."
    )


def test_too_few_documents_to_tell_what_added_up_do_not_pass() -> None:
    verdict = judge(outcome(0.01, 0.03), limits(), chain(0.0, 0.2))

    assert not verdict.passed
    assert verdict.reasons[1].endswith(
        "but up to 20.0 points cannot be ruled out (95% confidence): more documents would decide."
    )


def test_cumulative_loss_without_a_bound_is_held_against_its_limit() -> None:
    kept, lost = (chain(value, value, ("v0001", task(value, None))) for value in (0.05, 0.2))

    assert judge(outcome(0.01, 0.03), limits(), kept).passed
    reason = judge(outcome(0.01, 0.03), limits(), lost).reasons[1]
    assert reason == (
        "Forgetting since each task's best version is 20.0 points, above the limit of 10.0 points. Most was lost in "
        "facts (20.0 points since v0001)."
    )
