"""One training run in one process: model, subspaces, steps, checkpoints.

The same loop runs alone or in several processes; then each takes its share of every effective batch and the
gradients are summed once a step.
"""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_scheduler

from osft.config import TrainingConfig
from osft.data.samples import Samples, load_samples
from osft.errors import ConfigError, DataError, TrainingError
from osft.processes.group import Processes, process_group, sum_over_processes
from osft.subspace.attach import merge, project_gradients
from osft.training.attention import Forward, choose_forward
from osft.training.batches import StepPlan, collate, count_steps, plan_epoch
from osft.training.loss import summed_loss
from osft.training.loss_chart import write_loss_chart
from osft.training.metrics import StepMetrics, peak_memory_gib, read_metrics, reporting
from osft.training.model_files import LoadedModel, load_model, save_model
from osft.training.optimizer import MasterParameters, make_optimizer
from osft.training.preparation import count_trainable, prepare_model
from osft.workspace import read_json, write_json

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
METRICS_NAME = "metrics.jsonl"
RESULT_NAME = "training.json"
LOSS_CHART_NAME = "loss.html"
FINAL_CHECKPOINT_NAME = "final"


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
        prepare_model(loaded.model, config, samples, processes)
        run = _Run(config, loaded, samples, processes)
        run.train()
        if processes.is_first:
            _write_result(run, seconds=time.monotonic() - start)


def _load_fitting_samples(config: TrainingConfig, path: Path, model: PreTrainedModel) -> Samples:
    """Return the rows within ``max_seq_len``, all of which must fit ``max_tokens_per_gpu``."""
    everything = load_samples(path, model.config.get_text_config().vocab_size)
    samples = everything.select(np.flatnonzero(everything.lengths <= config.max_seq_len))
    if dropped := len(everything) - len(samples):
        logger.warning("%s: %d rows are longer than max_seq_len=%d and are left out", path, dropped, config.max_seq_len)
    if not samples:
        raise DataError(
            f"{path}: no row is left within max_seq_len={config.max_seq_len}. Raise it, or shorten the rows."
        )
    longest = samples.lengths.argmax()
    if samples.lengths[longest] > config.max_tokens_per_gpu:
        raise DataError(
            f"{path}, row {samples.rows[longest]}: {samples.lengths[longest]} tokens are more than max_tokens_per_gpu="
            f"{config.max_tokens_per_gpu}. Raise it, or lower max_seq_len to it to leave such rows out."
        )
    return samples


class _Run:
    """The state of one run: the optimizer, its schedule, and what has been written."""

    def __init__(self, config: TrainingConfig, loaded: LoadedModel, samples: Samples, processes: Processes) -> None:
        self.config = config
        self.loaded = loaded
        self.samples = samples
        self.processes = processes
        self.total_steps = count_steps(len(samples), config.effective_batch_size, config.num_epochs)
        self.masters = MasterParameters(p for p in loaded.model.parameters() if p.requires_grad)
        self.parameters = self.masters.parameters
        self.optimizer = make_optimizer(self.parameters, config)
        self.scheduler = _make_scheduler(self.optimizer, config, self.total_steps)
        self.step = 0
        self.epoch_checkpoints: list[Path] = []

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    def train(self) -> None:
        """Take every step of every epoch."""
        directory = self.config.checkpoint_directory
        forward = choose_forward(self.model, self.samples)
        metrics_file = directory / METRICS_NAME if self.processes.is_first else None
        with reporting(metrics_file, self.total_steps) as report:
            for epoch in range(self.config.num_epochs):
                for step in plan_epoch(self.samples, self.config, self.processes, epoch=epoch, packed=forward.packed):
                    report(self._take_step(step, forward))
                if self.config.checkpoint_at_epoch:
                    self._save_epoch(directory / f"epoch_{epoch + 1}")
        if self.config.save_final_checkpoint and self.processes.is_first:
            save_model(self.loaded, self.config.model_path, directory / FINAL_CHECKPOINT_NAME)

    def _save_epoch(self, target: Path) -> None:
        if self.processes.is_first:
            save_model(self.loaded, self.config.model_path, target)
        self.epoch_checkpoints.append(target)

    def _take_step(self, step: StepPlan, forward: Forward) -> StepMetrics:
        """Accumulate the gradient of one effective batch, move the weights, and report."""
        start = time.monotonic()
        loss = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for indices in step.micro_batches:
            micro_batch = collate([self.samples[index] for index in indices], packed=forward.packed)
            part = summed_loss(self.model, micro_batch.to(self.processes.device), forward.logits) / step.loss_tokens
            part.backward()
            loss += part.detach()
        # No list of the gradients is kept: it would hold those that the projection replaces.
        sum_over_processes((loss, *map(_gradient, self.parameters)), self.processes)
        gradient_norm = self._project_and_clip()
        self._check_finite(loss.item(), gradient_norm, step)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.masters.write_back()
        merge(self.model)
        self.step += 1
        return self._report(step, loss.item(), gradient_norm, learning_rate, seconds=time.monotonic() - start)

    def _project_and_clip(self) -> float:
        """Take the protected part out of the gradients, limit their norm, and return what it was."""
        if self.config.parametrization == "factored":
            # The reference clips first, as mini-trainer does. In the other order its losses differ by 2e-3 in 20 steps.
            gradient_norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            project_gradients(self.model)
        else:
            project_gradients(self.model)
            gradient_norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        return gradient_norm.item()

    def _check_finite(self, loss: float, gradient_norm: float, step: StepPlan) -> None:
        if not torch.isfinite(torch.tensor([loss, gradient_norm])).all():
            rows = sorted(self.samples.rows[step.samples].tolist())
            raise TrainingError(
                f"step {self.step + 1} of {self.total_steps}: loss {loss}, gradient norm {gradient_norm} on the rows "
                f"{rows[:20]} of {self.config.data_path}. Lower learning_rate, or look at these rows."
            )

    def _report(
        self, step: StepPlan, loss: float, gradient_norm: float, learning_rate: float, seconds: float
    ) -> StepMetrics:
        return StepMetrics(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.total_steps * self.config.num_epochs,
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=gradient_norm,
            loss_tokens=step.loss_tokens,
            tokens_per_second=step.tokens / seconds,
            seconds=seconds,
            peak_memory_gib=peak_memory_gib(self.processes.device),
        )


def _make_scheduler(optimizer: Optimizer, config: TrainingConfig, total_steps: int) -> LRScheduler:
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
