"""One training run in one process: model, subspaces, steps, checkpoints.

The same loop runs alone or in several processes; then each takes its share of every effective batch and the
gradients are summed once a step.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_scheduler

from osft.config import TrainingConfig
from osft.data.rows import IGNORED_LABEL
from osft.data.samples import Sample, load_samples
from osft.errors import ConfigError, DataError, TrainingError
from osft.subspace.attach import attach, merge, subspace_layers
from osft.training.batches import (
    MicroBatch,
    collate,
    count_loss_tokens,
    count_steps,
    effective_batches,
    micro_batches,
    share_of_process,
)
from osft.training.checkpoint import LoadedModel, load_model, save_model
from osft.training.distributed import Processes, copy_from_first, process_group, sum_over_processes
from osft.training.liger import apply_liger
from osft.training.loss_chart import write_loss_chart
from osft.training.metrics import MetricsFile, ProgressLog, StepMetrics, read_metrics
from osft.workspace import read_json, write_json

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
METRICS_NAME = "metrics.jsonl"
RESULT_NAME = "training.json"
LOSS_CHART_NAME = "loss.html"
FINAL_CHECKPOINT_NAME = "final"
BYTES_PER_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a finished run left behind."""

    final_checkpoint: Path | None
    """Folder of the final model in Hugging Face format; ``None`` with ``save_final_checkpoint=False``."""

    epoch_checkpoints: tuple[Path, ...]
    """Folders of the models after each epoch, with ``checkpoint_at_epoch=True``."""

    metrics_file: Path
    """One JSON line a step."""

    loss_chart: Path
    """The same as a picture, one self-contained HTML file."""

    steps: int
    """Optimizer steps taken."""

    samples: int
    """Rows trained on in each epoch."""

    first_loss: float
    """Loss of the first step, before it was taken."""

    final_loss: float
    """Loss of the last step, before it was taken."""

    trainable_parameters: int
    """Values that AdamW moved."""

    seconds: float
    """Wall time from the start of the loading to the last file."""

    @classmethod
    def load(cls, directory: Path | str) -> "TrainingResult":
        """Read the result that a run left in its ``ckpt_output_dir``; the folder may have been moved since.

        Raises:
            TrainingError: if no finished run is there.
        """
        root = Path(directory)
        try:
            fields = read_json(root / RESULT_NAME)["result"]
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f"{root}: holds no finished training run ({error}). Train there first.") from error
        final = fields.pop("final_checkpoint")
        return cls(
            final_checkpoint=root / final if final else None,
            epoch_checkpoints=tuple(root / name for name in fields.pop("epoch_checkpoints")),
            metrics_file=root / fields.pop("metrics_file"),
            loss_chart=root / fields.pop("loss_chart"),
            **fields,
        )


def train(config: TrainingConfig, train_data: Path) -> None:
    """Run the training that ``config`` describes on the token ids in ``train_data``; every process must call this.

    The first process leaves ``metrics.jsonl``, ``loss.html``, the checkpoints, and, last, ``training.json``.

    Raises:
        ConfigError: if a target pattern matches nothing or the scheduler refuses its arguments.
        DataError: if the data has no row that fits.
        MissingPathError: if the model does not exist.
        TrainingError: if a loss is not finite.
    """
    start = time.monotonic()
    torch.manual_seed(config.seed)
    with process_group() as processes:
        loaded = load_model(config.model_path, processes.device)
        samples = _load_fitting_samples(config, train_data, loaded.model)
        _prepare(loaded.model, config, processes)
        run = _Run(config, loaded, samples, processes)
        run.train()
        if processes.is_first:
            _write_result(run, seconds=time.monotonic() - start)


def _load_fitting_samples(config: TrainingConfig, path: Path, model: PreTrainedModel) -> list[Sample]:
    """Return the rows within ``max_seq_len``, all of which must fit ``max_tokens_per_gpu``."""
    everything = load_samples(path, model.config.get_text_config().vocab_size)
    samples = [sample for sample in everything if len(sample.input_ids) <= config.max_seq_len]
    if dropped := len(everything) - len(samples):
        logger.warning("%s: %d rows are longer than max_seq_len=%d and are left out", path, dropped, config.max_seq_len)
    if not samples:
        raise DataError(
            f"{path}: no row is left within max_seq_len={config.max_seq_len}. Raise it, or shorten the rows."
        )
    longest = max(samples, key=lambda sample: len(sample.input_ids))
    if len(longest.input_ids) > config.max_tokens_per_gpu:
        raise DataError(
            f"{path}, row {longest.row}: {len(longest.input_ids)} tokens are more than max_tokens_per_gpu="
            f"{config.max_tokens_per_gpu}. Raise it, or lower max_seq_len to it to leave such rows out."
        )
    return samples


def _prepare(model: PreTrainedModel, config: TrainingConfig, processes: Processes) -> None:
    if config.use_liger:
        apply_liger(model)
    start, num_parameters = time.monotonic(), model.num_parameters()
    attach(model, config.unfreeze_rank_ratio, config.target_patterns)
    # The trained values are coordinates in these bases. Where singular values are equal, a basis depends on the
    # machine that computed it, and the sum of gradients in different bases would mean nothing.
    bases = [basis for _, layer in subspace_layers(model) for basis in (layer.left.basis, layer.right.basis)]
    copy_from_first(bases, processes)
    if model.device.type == "cuda":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    logger.info(
        "unfreeze_rank_ratio %s: %d values are trained, the model has %d; decomposed in %.1f s",
        config.unfreeze_rank_ratio, count_trainable(model), num_parameters, time.monotonic() - start,
    )  # fmt: skip


def count_trainable(model: nn.Module) -> int:
    """Return how many values of ``model`` are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class _Run:
    """The state of one run: the optimizer, its schedule, and what has been written."""

    def __init__(
        self, config: TrainingConfig, loaded: LoadedModel, samples: Sequence[Sample], processes: Processes
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.samples = samples
        self.processes = processes
        self.total_steps = count_steps(len(samples), config.effective_batch_size, config.num_epochs)
        self.parameters = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
        self.optimizer = AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.scheduler = _make_scheduler(self.optimizer, config, self.total_steps)
        self.step = 0
        self.epoch_checkpoints: list[Path] = []

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    def train(self) -> None:
        """Take every step of every epoch."""
        directory = self.config.checkpoint_directory
        log = ProgressLog()
        metrics_file = MetricsFile(directory / METRICS_NAME) if self.processes.is_first else None
        for epoch in range(self.config.num_epochs):
            batches = effective_batches(
                len(self.samples), self.config.effective_batch_size, seed=self.config.seed, epoch=epoch
            )
            for indices in batches:
                metrics = self._take_step([self.samples[index] for index in indices])
                if metrics_file:
                    metrics_file.write(metrics)
                    log(metrics)
            if self.config.checkpoint_at_epoch:
                self._save_epoch(directory / f"epoch_{epoch + 1}")
        if self.config.save_final_checkpoint and self.processes.is_first:
            save_model(self.loaded, self.config.model_path, directory / FINAL_CHECKPOINT_NAME)
        if metrics_file:
            metrics_file.close()

    def _save_epoch(self, target: Path) -> None:
        if self.processes.is_first:
            save_model(self.loaded, self.config.model_path, target)
        self.epoch_checkpoints.append(target)

    def _take_step(self, batch: Sequence[Sample]) -> StepMetrics:
        """Accumulate the gradient of one effective batch, move the weights, and report."""
        start = time.monotonic()
        loss_tokens = count_loss_tokens(batch)
        mine = share_of_process(batch, self.processes.global_rank, self.processes.world_size)
        loss = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for group in micro_batches(mine, self.config.max_tokens_per_gpu):
            part = summed_loss(self.model, collate(group).to(self.processes.device)) / loss_tokens
            part.backward()
            loss += part.detach()
        gradients = [_gradient(parameter) for parameter in self.parameters]
        sum_over_processes([loss, *gradients], self.processes)
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM).item()
        self._check_finite(loss.item(), gradient_norm, batch)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        merge(self.model)
        self.step += 1
        return self._report(
            batch, loss.item(), gradient_norm, learning_rate, loss_tokens, seconds=time.monotonic() - start
        )

    def _check_finite(self, loss: float, gradient_norm: float, batch: Sequence[Sample]) -> None:
        if not torch.isfinite(torch.tensor([loss, gradient_norm])).all():
            rows = sorted(sample.row for sample in batch)
            raise TrainingError(
                f"step {self.step + 1} of {self.total_steps}: loss {loss}, gradient norm {gradient_norm} on the rows "
                f"{rows[:20]} of {self.config.data_path}. Lower learning_rate, or look at these rows."
            )

    def _report(
        self, batch: Sequence[Sample], loss: float, gradient_norm: float, learning_rate: float, loss_tokens: int,
        seconds: float,
    ) -> StepMetrics:  # fmt: skip
        on_gpu = self.processes.device.type == "cuda"
        return StepMetrics(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.total_steps * self.config.num_epochs,
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=gradient_norm,
            loss_tokens=loss_tokens,
            tokens_per_second=sum(len(sample.input_ids) for sample in batch) / seconds,
            seconds=seconds,
            peak_memory_gib=torch.cuda.max_memory_allocated() / BYTES_PER_GIB if on_gpu else None,
        )


def _make_scheduler(optimizer: AdamW, config: TrainingConfig, total_steps: int) -> LRScheduler:
    arguments = {name: _as_number(value) for name, value in config.lr_scheduler_kwargs.items()}
    try:
        return get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=arguments,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lr_scheduler='{config.lr_scheduler}' with lr_scheduler_kwargs={arguments}: {error}."
        ) from error


def _as_number(value: str | float) -> str | float | int:
    """Read ``"3"`` and ``"0.1"`` as the numbers they are; other text stays text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def summed_loss(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return the cross-entropy summed over the trained tokens of ``batch``, a float32 scalar."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    labels = batch.labels[:, 1:]
    trained = labels != IGNORED_LABEL
    # Only the rows that count are brought to float32.
    return F.cross_entropy(logits[:, :-1][trained].float(), labels[trained], reduction="sum")


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of ``parameter``; zero when this process had no share of the batch."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _write_result(run: _Run, seconds: float) -> None:
    """Write the chart and, last, the file that says the run is finished."""
    config, directory = run.config, run.config.checkpoint_directory
    steps = read_metrics(directory / METRICS_NAME)
    write_loss_chart(steps, directory / LOSS_CHART_NAME)
    result = {
        "final_checkpoint": FINAL_CHECKPOINT_NAME if config.save_final_checkpoint else None,
        "epoch_checkpoints": [path.name for path in run.epoch_checkpoints],
        "metrics_file": METRICS_NAME,
        "loss_chart": LOSS_CHART_NAME,
        "steps": len(steps),
        "samples": len(run.samples),
        "first_loss": steps[0].loss,
        "final_loss": steps[-1].loss,
        "trainable_parameters": count_trainable(run.model),
        "seconds": seconds,
    }
    write_json(directory / RESULT_NAME, {"config": asdict(config), "result": result})
