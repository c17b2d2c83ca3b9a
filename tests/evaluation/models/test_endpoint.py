import logging
from pathlib import Path
from typing import Any

import pytest

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.harness import measure
from osft.evaluation.holdout import HoldoutTask, read_holdout
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import find_model
from osft.evaluation.store import MeasurementStore
from osft.evaluation.tasks import RequestedTask, load_tasks


def served(server: Any, base_model: Path, *, batch_size: int = 3) -> LazyModel:
    config = EvaluationConfig(tasks=("anything",), backend="openai", base_url=server.url, batch_size=batch_size)
    return LazyModel(find_model(str(base_model), config), config, label="base")


def here(base_model: Path) -> LazyModel:
    config = EvaluationConfig(tasks=("anything",), batch_size=3)
    return LazyModel(find_model(str(base_model), config), config, label="base")


def test_tasks_score_behind_a_server_as_they_do_here(
    kit: Any, tmp_path: Path, server: Any, base_model: Path, base_oracle: Any
) -> None:
    kit.write_letters_task(tmp_path, "letters", base_oracle, num_wrong=2)
    kit.write_copy_task(tmp_path, "copies", base_oracle)
    kit.write_prose_task(tmp_path, "prose")
    rows = [ids + base_oracle.greedy(ids, 4) for ids in map(base_oracle.prompt_ids, kit.questions[:4])]
    # One answer that the model would give, and others that it would not.
    labelled = [
        ([*row[:-1], row[-1] if place == 0 else 77, 2], [-100] * (len(row) - 4) + [*row[-4:], 2])
        for place, row in enumerate(rows)
    ]
    holdout = kit.write_holdout(tmp_path / "holdout.parquet", labelled)
    config = EvaluationConfig(tasks=("letters", "copies", "prose"), include_path=tmp_path)
    measured = []
    for model in (served(server, base_model), here(base_model)):
        task = HoldoutTask(read_holdout(holdout, vocabulary_size=259), model.source.tokenizer)
        held_out = RequestedTask(name="holdout", asked_as="holdout", kind="target", item=task)
        measured.append(
            measure(
                model,
                (*load_tasks(config), held_out),
                config,
                apply_chat_template=True,
                store=MeasurementStore(None),
            )
        )

    behind_server, in_process = measured

    assert list(behind_server) == ["letters", "copies", "prose", "holdout"]
    for name, expected in in_process.items():
        found = behind_server[name]
        assert found.value == pytest.approx(expected.value, rel=1e-5)
        assert found.other_values == pytest.approx(expected.other_values, rel=1e-5)
        assert [one.score for one in found.documents] == pytest.approx(
            [one.score for one in expected.documents], rel=1e-5
        )
        assert [one.fingerprint for one in found.documents] == [one.fingerprint for one in expected.documents]
        if name in ("letters", "copies"):
            assert [one.answer for one in found.documents] == [one.answer for one in expected.documents]


def test_several_prompts_go_in_one_request(requests_of: Any, server: Any, base_model: Path) -> None:
    lm = served(server, base_model, batch_size=3).lm
    server.payloads.clear()

    lm.loglikelihood_of_tokens([requests_of.score([10, 11], [12 + number]) for number in range(7)])

    assert sorted(len(payload["prompt"]) for payload in server.payloads) == [1, 3, 3]


def test_prompts_that_do_not_fit_lose_their_beginning(requests_of: Any, server: Any, base_model: Path) -> None:
    lm = served(server, base_model).lm
    question = "x" * 400

    (score,) = lm.loglikelihood([requests_of.text("loglikelihood", question, "ab")])
    (text,) = lm.generate_until([requests_of.text("generate_until", question, {"max_gen_toks": 2})])

    (expected,) = lm.loglikelihood([requests_of.text("loglikelihood", "x" * 253, "ab")])
    assert score == expected
    assert isinstance(text, str)


def test_answer_longer_than_the_servers_window_is_an_error(requests_of: Any, server: Any, base_model: Path) -> None:
    lm = served(server, base_model).lm

    with pytest.raises(EvaluationError, match="an answer of 300 tokens does not fit the server's window of 255"):
        lm.loglikelihood([requests_of.text("loglikelihood", "a", "b" * 300)])


@pytest.mark.parametrize("max_tokens", [256, 300])
def test_answer_that_leaves_no_room_for_a_prompt_is_an_error(
    requests_of: Any, server: Any, base_model: Path, max_tokens: int
) -> None:
    lm = served(server, base_model).lm

    with pytest.raises(
        EvaluationError, match=f"task task: max_gen_toks is {max_tokens}, but must be below the server's window of 256"
    ):
        lm.generate_until([requests_of.text("generate_until", "a", {"max_gen_toks": max_tokens})])


def test_template_that_takes_no_system_message_makes_the_same_prompt_as_here(server: Any, base_model: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    models = [served(server, base_model).lm, here(base_model).lm]
    for model in models:
        model.tokenizer.chat_template = (
            "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
            "{{ message.content }}{% endfor %}"
        )

    prompts = [model.apply_chat_template(messages) for model in models]

    assert prompts == ["u", "u"]


def test_nan_from_a_server_is_an_error(requests_of: Any, server: Any, base_model: Path) -> None:
    lm = served(server, base_model).lm
    server.broken = True

    with pytest.raises(EvaluationError, match="the base model gave the log-likelihood nan"):
        lm.loglikelihood([requests_of.text("loglikelihood", "a", "b")])


def test_a_refused_request_ends_the_task_without_showing_its_text(
    requests_of: Any, server: Any, base_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = served(server, base_model, batch_size=1).lm
    server.refusals = [400]
    requests = [requests_of.text("generate_until", f"secret {number}", {"max_gen_toks": 2}) for number in range(3)]

    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(EvaluationError, match="answers 400 Bad Request: The engine") as e,
    ):
        lm.generate_until(requests)

    assert "secret" not in str(e.value) + caplog.text


def test_progress_of_a_server_is_logged_and_nothing_is_printed(
    requests_of: Any,
    server: Any,
    base_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("osft.evaluation.models.watched.PROGRESS_SECONDS", 0.0)
    lm = served(server, base_model).lm
    capfd.readouterr()

    with caplog.at_level(logging.INFO, logger="osft.evaluation.models.watched"):
        lm.loglikelihood([requests_of.text("loglikelihood", "a", letter) for letter in "bcde"])

    assert caplog.messages == [
        "base: 4 requests of log-likelihood",
        "base: 3 of at most 4 requests done",
        "base: 4 of at most 4 requests done",
    ]
    assert capfd.readouterr().out == ""
