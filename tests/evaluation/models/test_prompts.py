"""Every way to run a model must make the same prompts, or two of them would measure two tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lm_eval import evaluate

from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.endpoint import EndpointModel
from osft.evaluation.models.hugging_face import HuggingFaceModel
from osft.evaluation.models.loading import Loaded
from osft.evaluation.models.replicas import ReplicatedModel
from osft.evaluation.models.source import find_model
from osft.evaluation.tasks import load_tasks


@contextmanager
def running(kind: str, folder: Path, url: str) -> Iterator[Loaded]:
    config = EvaluationConfig(tasks=("anything",))
    source = find_model(str(folder), config)
    if kind == "one process":
        model: Loaded = HuggingFaceModel(source, label="base", batch_size=3)
    elif kind == "two processes":
        model = ReplicatedModel(source, label="base", batch_size=3, devices=("cpu", "cpu"))
    else:
        config = EvaluationConfig(tasks=("anything",), backend="openai", base_url=url, batch_size=3)
        model = EndpointModel(find_model(str(folder), config), config, label="base")
    yield model
    model.close()


def write_conversation_task(kit: Any, folder: Path) -> None:
    rows = [{"question": question, "answer": "b"} for question in kit.questions[:5]]
    kit.write_task(
        folder,
        "talk",
        rows,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="answer",
        num_fewshot=2,
        fewshot_split="test",
        fewshot_config={"sampler": "first_n"},
        generation_kwargs={"until": ["<|im_end|>"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )


@pytest.mark.parametrize("kind", ["one process", "a server", pytest.param("two processes", marks=pytest.mark.slow)])
def test_examples_are_turns_of_a_conversation(
    kit: Any, tmp_path: Path, base_model: Path, base_oracle: Any, server: Any, kind: str
) -> None:
    write_conversation_task(kit, tmp_path)
    (requested,) = load_tasks(EvaluationConfig(tasks=("talk",), include_path=tmp_path))
    (task,) = requested.tasks

    with running(kind, base_model, server.url) as model:
        results = evaluate(
            lm=model, task_dict={"talk": task}, apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0
        )

    samples = results["samples"]["talk"]
    assert len(samples) == 5
    for sample in samples:
        prompt = sample["arguments"][0][0]
        assert prompt.count("<|im_start|>user\n") == prompt.count("<|im_start|>assistant\n") == 3
        ids = base_oracle.tokenizer.encode(prompt)
        answer = base_oracle.tokenizer.decode(base_oracle.greedy(ids, 4), skip_special_tokens=True)
        assert sample["resps"][0][0] == answer
