from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.harness import measure, question_fingerprint
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import find_model
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import load_tasks


@pytest.fixture
def tasks(kit: Any, tmp_path: Path, base_oracle: Any) -> Path:
    kit.write_letters_task(tmp_path / "tasks", "letters", base_oracle)
    kit.write_copy_task(tmp_path / "tasks", "copies", base_oracle)
    kit.write_prose_task(tmp_path / "tasks", "prose")
    return tmp_path / "tasks"


def measure_all(
    model: Path, config: EvaluationConfig, store: Path | None = None, *, apply_chat_template: bool = False
) -> dict[str, Any]:
    with LazyModel(find_model(str(model), config), config, label="base", memo=store) as lazy:
        return measure(
            lazy,
            load_tasks(config),
            config,
            apply_chat_template=apply_chat_template,
            store=MeasurementStore(store),
        )


def test_nan_weights_are_an_error_and_not_a_score(kit: Any, tmp_path: Path, tasks: Path) -> None:
    broken = kit.save_model(tmp_path / "broken", damage=float("nan"))

    with pytest.raises(EvaluationError, match="the base model gave the log-likelihood nan"):
        measure_all(broken, EvaluationConfig(tasks=("letters",), include_path=tasks, limit=2))


def test_task_that_does_not_fit_the_model_is_named_with_the_model(kit: Any, tmp_path: Path, base_model: Path) -> None:
    kit.write_task(
        tmp_path,
        "odd",
        [{"question": "a", "gold": 0, "choices": ["x", "y"]}, {"question": "b", "gold": 0, "choices": []}],
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="gold",
        doc_to_choice="choices",
    )

    with pytest.raises(EvaluationError, match=r"lm-eval failed on the base model '.*', task 'odd': "):
        measure_all(base_model, EvaluationConfig(tasks=("odd",), include_path=tmp_path))


def test_task_that_runs_code_of_the_model_is_refused(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    kit.write_letters_task(tmp_path, "letters", base_oracle, unsafe_code=True)

    with pytest.raises(EvaluationError, match="task 'letters' runs code that the model writes"):
        load_tasks(EvaluationConfig(tasks=("letters",), include_path=tmp_path))


def test_generation_settings_replace_the_tasks_own(base_model: Path, tasks: Path) -> None:
    config = EvaluationConfig(tasks=("copies",), include_path=tasks, limit=2)

    plain = measure_all(base_model, config)["copies"]
    short = measure_all(base_model, replace(config, generation={"max_gen_toks": 1}))["copies"]

    assert all(long.answer.startswith(cut.answer) for long, cut in zip(plain.documents, short.documents, strict=True))
    assert [document.answer for document in plain.documents] != [document.answer for document in short.documents]


def test_perplexity_keeps_loglikelihood_and_words_of_each_document(base_model: Path, tasks: Path) -> None:
    prose = measure_all(base_model, EvaluationConfig(tasks=("prose",), include_path=tasks))["prose"]

    assert [document.weight for document in prose.documents] == [3, 5, 2]
    assert all(document.score is not None and document.score < 0 for document in prose.documents)


def test_order_of_the_tasks_does_not_change_a_result(base_model: Path, tasks: Path) -> None:
    config = EvaluationConfig(tasks=("letters", "copies"), include_path=tasks, num_fewshot=2, limit=6)
    turned = replace(config, tasks=("copies", "letters"))

    assert measure_all(base_model, config) == measure_all(base_model, turned)


CODE = """
def shuffle_rows(dataset):
    return dataset.shuffle()

def fail(doc, results):
    return doc.nothing

def overflow(doc, results):
    return {"acc": 10.0 ** 400}

def with_side(doc, results):
    likelihoods = [one[0] for one in results]
    return {"acc": float(likelihoods.index(max(likelihoods)) == doc["gold"]), "side": float("nan")}

def both(doc, results):
    return {"acc": with_side(doc, results)["acc"], "acc_norm": 0.0}

def loss(doc, results):
    return {"loss": 1.0}
"""
ACC, ACC_NORM = ({"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm"))


def write_letters_with(kit: Any, folder: Path, oracle: Any, name: str, field: str, function: str, **more: Any) -> None:
    kit.write_letters_task(folder, name, oracle, **more)
    (folder / "utils.py").write_text(CODE)
    with (folder / f"{name}.yaml").open("a") as file:
        file.write(f"{field}: !function utils.{function}\n")


def test_task_that_shuffles_its_rows_is_scored_on_what_was_asked(
    kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any
) -> None:
    write_letters_with(kit, tmp_path, base_oracle, "letters", "process_docs", "shuffle_rows")
    config = EvaluationConfig(tasks=("letters",), include_path=tmp_path)

    letters = measure_all(base_model, config, apply_chat_template=True)["letters"]

    assert letters.value == 1.0


@pytest.mark.parametrize(("function", "error"), [("fail", "AttributeError: "), ("overflow", "OverflowError: ")])
def test_whatever_a_tasks_own_code_raises_is_one_line(
    kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any, function: str, error: str
) -> None:
    write_letters_with(kit, tmp_path, base_oracle, "letters", "process_results", function)

    with pytest.raises(EvaluationError, match=rf"^lm-eval failed on the base model '.*', task 'letters': {error}.*$"):
        measure_all(base_model, EvaluationConfig(tasks=("letters",), include_path=tmp_path, limit=2))


def test_nan_that_is_only_for_information_is_left_out(
    kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = [ACC, {"metric": "side", "aggregation": "mean", "higher_is_better": True}]
    write_letters_with(kit, tmp_path, base_oracle, "letters", "process_results", "with_side", metric_list=metrics)

    letters = measure_all(base_model, EvaluationConfig(tasks=("letters",), include_path=tmp_path, limit=2))["letters"]

    assert (letters.metric, letters.other_values) == ("acc", {})
    assert "base: task 'letters': side is nan and is left out" in caplog.text


def test_metric_that_counts_without_being_declared_is_an_error(
    kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any
) -> None:
    write_letters_with(kit, tmp_path, base_oracle, "letters", "process_results", "loss")

    with pytest.raises(EvaluationError, match="task 'letters': nothing says whether a higher loss is better"):
        measure_all(base_model, EvaluationConfig(tasks=("letters",), include_path=tmp_path, limit=2))


def test_metric_of_a_groups_tasks_is_the_one_that_the_group_joins(
    kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any
) -> None:
    for name in ("one", "two"):
        write_letters_with(kit, tmp_path, base_oracle, name, "process_results", "both", metric_list=[ACC, ACC_NORM])
    kit.write_group(tmp_path, "group", ["one", "two"])
    config = EvaluationConfig(tasks=("group",), include_path=tmp_path, limit=2)

    grouped = measure_all(base_model, config, tmp_path / "store")
    alone = measure_all(base_model, replace(config, tasks=("one", "two")), tmp_path / "store")

    assert {one.metric for one in grouped.values()} == {"acc"}
    assert {one.metric for one in alone.values()} == {"acc_norm"}


def test_task_in_two_subgroups_is_measured_once(kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any) -> None:
    for name in ("one", "two", "shared"):
        kit.write_letters_task(tmp_path, name, base_oracle)
    kit.write_group(tmp_path, "first", ["one", "shared"])
    kit.write_group(tmp_path, "second", ["two", "shared"])
    kit.write_group(tmp_path, "all", ["first", "second"])

    measured = measure_all(base_model, EvaluationConfig(tasks=("all",), include_path=tmp_path, limit=2))

    assert list(measured) == ["one", "shared", "two"]


def test_examples_are_asked_as_turns_like_by_lm_evals_own_command(base_model: Path, tasks: Path) -> None:
    config = EvaluationConfig(tasks=("letters",), include_path=tasks, num_fewshot=1, limit=1)
    with LazyModel(find_model(str(base_model), config), config, label="base", memo=None) as lazy:
        ours = measure(lazy, load_tasks(config), config, apply_chat_template=True, store=MeasurementStore(None))

        theirs = simple_evaluate(
            model=lazy.lm,
            tasks=[load_tasks(config)[0].item],
            task_manager=TaskManager(include_defaults=False),
            limit=1,
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_random_seed=config.seed,
        )

    assert ours["letters"].documents[0].prompt == theirs["samples"]["letters"][0]["arguments"][0][0]
    assert ours["letters"].documents[0].prompt.count("<|im_start|>assistant") == 2


SAMPLE: dict[str, Any] = {
    "doc_hash": "a",
    "target_hash": "b",
    "arguments": [("Which?", " one"), ("Which?", " two")],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"doc_hash": "other"},
        {"target_hash": "other"},
        {"arguments": [("Who?", " one"), ("Who?", " two")]},
        {"arguments": [("Which?", " one"), ("Which?", " three")]},
        {"arguments": [("Which?", {"until": ["."], "max_gen_toks": 8})]},
    ],
)
def test_another_question_has_another_fingerprint(changes: dict[str, Any]) -> None:
    assert question_fingerprint(SAMPLE) == question_fingerprint(dict(SAMPLE))
    assert question_fingerprint(SAMPLE | changes) != question_fingerprint(SAMPLE)


def test_how_long_an_answer_may_be_is_part_of_the_question() -> None:
    short, long = (
        SAMPLE | {"arguments": [("Which?", {"until": ["."], "max_gen_toks": tokens})]} for tokens in (8, 256)
    )

    assert question_fingerprint(short) != question_fingerprint(long)
