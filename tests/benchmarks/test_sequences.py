"""Sequences of tasks: the arithmetic of what is left, the results' file, and one sequence through the engine."""

from pathlib import Path

import pytest
import typer
from transformers import AutoTokenizer

from benchmarks.sequences.__main__ import choose_methods, is_done
from benchmarks.sequences.bases import Architecture
from benchmarks.sequences.methods import list_methods
from benchmarks.sequences.sequence import SequenceResult, run_sequence
from benchmarks.sequences.tables import read_results, write_results
from benchmarks.sequences.texts import load_tasks

RESULT = SequenceResult(
    architecture="demo",
    method="sft",
    seed=1,
    tasks=("first", "second", "third"),
    matrix=((1.0, 0.0, 0.0), (0.5, 0.9, 0.0), (0.25, 0.5, 1.0)),
    base=(1.0, 0.9, 0.8, 0.7),
    steps=(10, 10, 10),
    seconds=(1.0, 1.0, 1.0),
    memory_bytes=(),
)


def test_what_is_left_is_counted_from_right_after_each_task_was_learnt() -> None:
    assert RESULT.average_accuracy == pytest.approx(1.75 / 3)
    assert RESULT.backward_transfer == pytest.approx((0.25 - 1.0 + 0.5 - 0.9) / 2)
    assert RESULT.base_forgetting == pytest.approx(0.3)
    assert RESULT.least_learnt == pytest.approx(0.9)


def test_a_run_goes_on_from_the_sequences_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [RESULT], "a machine")

    results = read_results(path)

    assert results == [RESULT]
    assert is_done(results, "demo", "sft", tasks=3, seed=1)
    assert not is_done(results, "demo", "sft", tasks=3, seed=2)


def test_an_unknown_method_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(typer.BadParameter, match="magic: choose from sft, sft-linears"):
        choose_methods(["sft", "magic"])


def test_a_seed_draws_the_order_of_the_tasks(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    first, again, other = ([task.name for task in load_tasks(tokenizer, 4, seed)] for seed in (0, 0, 1))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize("method", ["sft-linears", "memory-weights-0.5"])
def test_a_sequence_is_measured_after_each_of_its_tasks(tiny_model: Path, method: str) -> None:
    chosen = list_methods(Architecture.DEMO)[method]

    result = run_sequence("tiny", tiny_model, chosen, num_tasks=2, seed=0, max_epochs=1)

    assert [len(row) for row in result.matrix] == [2, 2]
    assert len(result.base) == 3
    assert len(result.steps) == 2
    assert [size > 0 for size in result.memory_bytes] == ([True, True] if method.startswith("memory") else [])
