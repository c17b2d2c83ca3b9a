import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.hugging_face import HuggingFaceModel
from osft.evaluation.models.replicas import ReplicatedModel, deal
from osft.evaluation.models.source import ModelSource, find_model

CONFIG = EvaluationConfig(tasks=("anything",))
WORDS = st.text("ab ", min_size=1, max_size=30)


def choice_request(context: str, choice: str) -> Instance:
    return Instance(request_type="loglikelihood", doc={}, arguments=(context, choice), idx=0)


def vocabulary_size(model: Any, factor: int) -> int:
    return factor * model.config.vocab_size


def end_this_process(model: Any) -> None:
    del model
    os.kill(os.getpid(), signal.SIGKILL)


def fail_oddly(model: Any) -> None:
    raise KeyError("odd")


@pytest.fixture(scope="module")
def source(base_model: Path) -> ModelSource:
    return find_model(str(base_model), CONFIG)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=40), st.integers(1, 5))
def test_every_request_is_dealt_once_with_its_context(pairs: list[tuple[str, str]], num_shards: int) -> None:
    requests = [choice_request(context, choice) for context, choice in pairs]

    shards = deal(requests, num_shards)

    assert sorted(number for shard in shards for number in shard) == list(range(len(requests)))
    shard_of = {number: place for place, shard in enumerate(shards) for number in shard}
    for first, one in enumerate(pairs):
        assert {shard_of[second] for second, other in enumerate(pairs) if other[0] == one[0]} == {shard_of[first]}


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 5))
def test_shards_are_of_equal_length(lengths: list[int], num_shards: int) -> None:
    requests = [choice_request(f"{number:03d}".ljust(3 + length), "a") for number, length in enumerate(lengths)]

    shards = deal(requests, num_shards)

    # Dealt in turn from the longest down, two shards differ by at most the longest request.
    totals = [sum(lengths[number] + 4 for number in shard) for shard in shards]
    assert max(totals) - min(totals) <= max(lengths) + 4


@pytest.mark.slow
def test_two_processes_answer_as_one_does(requests_of: Any, kit: Any, source: ModelSource, base_oracle: Any) -> None:
    choices = [choice_request(question, choice) for question in kit.questions[:5] for choice in "abc"]
    texts = [requests_of.text("loglikelihood_rolling", "word " * number) for number in (1, 90, 5)]
    prompts = [requests_of.text("generate_until", text, {"max_gen_toks": 4}) for text in kit.questions[:5]]
    scored = [requests_of.score([10, 20, 30][:length], [40, 50]) for length in (1, 2, 3)]
    written = [requests_of.write(base_oracle.prompt_ids(text), max_tokens=4) for text in kit.questions[:3]]
    one = HuggingFaceModel(source, label="base", batch_size=2)
    two = ReplicatedModel(source, label="base", batch_size=2, devices=("cpu", "cpu"))
    try:
        for method, requests in (("loglikelihood", choices), ("loglikelihood_of_tokens", scored)):
            expected, found = getattr(one, method)(requests), getattr(two, method)(requests)
            assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
            assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
        assert two.loglikelihood_rolling(texts) == pytest.approx(one.loglikelihood_rolling(texts), rel=1e-5)
        assert two.generate_until(prompts) == one.generate_until(prompts)
        assert two.generate_from_tokens(written) == one.generate_from_tokens(written)
        assert two.loglikelihood([]) == []
        # 16 draws from some hundred letters: two that are alike by chance are likely, half of them are not.
        sampled = {"do_sample": True, "temperature": 3.0, "max_gen_toks": 4}
        assert len(set(two.generate_until([requests_of.text("generate_until", "a", sampled)] * 16))) > 8
        assert two.run(vocabulary_size, 2) == one.run(vocabulary_size, 2) == 518
        messages = [{"role": "user", "content": "a"}]
        assert two.apply_chat_template(messages) == one.apply_chat_template(messages)
        assert two.chat_template(True) == one.chat_template(True)
        assert two.tokenizer_name == one.tokenizer_name
    finally:
        two.close()


@pytest.mark.slow
def test_failing_workers_end_with_one_error(requests_of: Any, source: ModelSource) -> None:
    for function, message in (
        (end_this_process, "the tuned model's process on cpu was killed, most likely because memory ran out"),
        (fail_oddly, "the tuned model failed on cpu: KeyError: 'odd'"),
    ):
        before = set(psutil.Process().children(recursive=True))
        model = ReplicatedModel(source, label="tuned", batch_size=2, devices=("cpu", "cpu"))
        with pytest.raises(EvaluationError, match=message):
            model.run(function)
        started = set(psutil.Process().children(recursive=True)) - before
        assert not [one for one in started if "--process-name" in one.cmdline()]


@pytest.mark.slow
def test_an_error_of_a_worker_is_told_as_it_is(requests_of: Any, source: ModelSource) -> None:
    model = ReplicatedModel(source, label="tuned", batch_size=2, devices=("cpu",))

    with pytest.raises(EvaluationError, match="task holdout, row 7: 258 tokens, but the tuned model takes at most 257"):
        model.loglikelihood_of_tokens([requests_of.score([5], [6]), requests_of.score([5] * 200, [6] * 58)])


PARENT = """
import os, signal, sys
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.replicas import ReplicatedModel
from osft.evaluation.models.source import find_model
model = ReplicatedModel(
    find_model(sys.argv[1], EvaluationConfig(tasks=("anything",))), label="base", batch_size=2, devices=("cpu",)
)
print(next(iter(model._workers[0]._processes)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(base_model: Path) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, str(base_model)], stdout=subprocess.PIPE, check=False, timeout=120
    )

    worker = int(parent.stdout)
    # The worker looks for its parent every second.
    _, alive = psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=60)
    assert not alive
