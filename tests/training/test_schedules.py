"""Every schedule of transformers that needs no metric of an evaluation."""

from pathlib import Path

import pytest
from transformers import SchedulerType

from osft import osft
from osft.config import SCHEDULES_OF_A_METRIC
from osft.training.metrics import read_metrics

NAMES = [kind.value for kind in SchedulerType if kind.value not in SCHEDULES_OF_A_METRIC]
# What these cannot do without; as text, as a pipeline passes it.
NEEDED = {
    "cosine_with_min_lr": {"min_lr_rate": "0.1"},
    "cosine_warmup_with_min_lr": {"min_lr_rate": "0.1"},
    "warmup_stable_decay": {"num_decay_steps": "2"},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_follows_the_schedule(tiny_model: Path, messages_file: Path, tmp_path: Path, name: str) -> None:
    result = osft(
        model_path=str(tiny_model), data_path=str(messages_file), ckpt_output_dir=str(tmp_path / "out"),
        unfreeze_rank_ratio=0.5, effective_batch_size=2, max_tokens_per_gpu=256, max_seq_len=128, learning_rate=1e-3,
        warmup_steps=1, num_epochs=2, nproc_per_node=1, lr_scheduler=name, lr_scheduler_kwargs=NEEDED.get(name, {}),
        save_final_checkpoint=False,
    )  # fmt: skip

    rates = [metrics.learning_rate for metrics in read_metrics(result.metrics_file)]
    assert len(rates) == 8
    assert max(rates) == pytest.approx(1e-3)
    assert (rates[-1] < 1e-3) == (not name.startswith("constant"))
