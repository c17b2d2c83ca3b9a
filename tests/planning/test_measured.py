"""The predicted peak against what a real run takes from PyTorch's allocator."""

import json
import os
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from osft.config import TrainingConfig
from osft.planning.memory_plan import BYTES_PER_GIB
from osft.planning.plan import plan_training
from osft.planning.simulation import REMEMBERING
from osft.training.loop import train
from tests.conftest import join_run, run_together

VOCABULARY = 2000


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=768,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    # Stored in bfloat16 and computed in float32: memory-mapped weights would not come from the allocator.
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def load_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # The profiler sees the allocations of its own thread.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


def measured_peak_gib(config: TrainingConfig) -> float:
    """Train and return the largest sum of live allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        train(config)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(num_bytes for _, num_bytes in changes)) / BYTES_PER_GIB


def make_run(
    weights_folder: Path, folder: Path, ratio: float, tokens: int, sample_tokens: int, world_size: int = 1
) -> TrainingConfig:
    """Return a run of one step with two full micro-batches, all of whose tokens are trained, and then another."""
    generator = np.random.default_rng(0)
    num_rows = 2 * world_size * tokens // sample_tokens
    rows = [generator.integers(0, VOCABULARY, sample_tokens).tolist() for _ in range(num_rows)]
    data = folder / "train.parquet"
    pq.write_table(pa.table({"input_ids": rows, "labels": rows}), data)
    return TrainingConfig(
        model_path=str(weights_folder),
        data_path=str(data),
        use_processed_dataset=True,
        unfreeze_rank_ratio=ratio,
        effective_batch_size=len(rows),
        max_tokens_per_gpu=tokens,
        max_seq_len=sample_tokens,
        learning_rate=1e-5,
        ckpt_output_dir=str(folder / "out"),
        save_final_checkpoint=False,
        num_epochs=2,
    )


@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize("tokens", [16, 1024])
def test_the_prediction_is_within_a_tenth_of_the_measured_peak(
    weights_folder: Path, tmp_path: Path, ratio: float, tokens: int
) -> None:
    run = make_run(weights_folder, tmp_path, ratio, tokens, sample_tokens=min(tokens, 256))

    predicted = plan_training(run, on_gpu=False).total_gib

    assert predicted == pytest.approx(measured_peak_gib(run), rel=0.1)


def remembering(run: TrainingConfig) -> TrainingConfig:
    """Return ``run`` as one that leaves a memory."""
    return replace(run, remember=True)


def test_measuring_the_memory_is_the_peak_of_a_small_update_and_within_a_tenth_of_the_measured_one(
    weights_folder: Path, tmp_path: Path
) -> None:
    run = remembering(make_run(weights_folder, tmp_path, 0.05, tokens=16, sample_tokens=16))

    plan = plan_training(run, on_gpu=False)

    assert plan.peak_phase == REMEMBERING
    assert plan.total_gib == pytest.approx(measured_peak_gib(run), rel=0.1)


def measure_share(local_rank: int, port: int, world_size: int, folder: Path) -> None:
    """Run in a process of its own: train together with the others and leave the peak."""
    join_run(local_rank, world_size, port)
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    run = TrainingConfig(**json.loads((folder / "run.json").read_text()))
    (folder / f"peak_{local_rank}").write_text(str(measured_peak_gib(run)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "ratio", "tokens", "remember"),
    [(2, 0.25, 16, True), (2, 0.75, 1024, False), (3, 0.25, 1024, False)],
)
def test_the_prediction_for_each_of_several_processes_is_within_a_tenth_of_its_measured_peak(
    weights_folder: Path, tmp_path: Path, world_size: int, ratio: float, tokens: int, remember: bool
) -> None:
    run = make_run(weights_folder, tmp_path, ratio, tokens, sample_tokens=min(tokens, 256), world_size=world_size)
    run = remembering(run) if remember else run
    (tmp_path / "run.json").write_text(json.dumps(asdict(run)))
    run_together(measure_share, world_size, world_size, tmp_path)

    predicted = plan_training(run, on_gpu=False, world_size=world_size).total_gib

    peaks = [float((tmp_path / f"peak_{rank}").read_text()) for rank in range(world_size)]
    # All have as much, to a row. The profiler does not see what gloo's threads let go of, so it may count too much.
    assert predicted == pytest.approx(min(peaks), rel=0.1)
