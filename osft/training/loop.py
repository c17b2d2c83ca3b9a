"""One training run in one process: model, subspaces, steps, checkpoints.

The same loop runs alone or in several processes; then each takes its share of every effective batch and the
gradients are summed once a step.
"""

import gc
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_scheduler

from osft.checkpoints.checkpoints import Checkpoints
from osft.checkpoints.state import TrainingState
from osft.config import TrainingConfig
from osft.data.samples import Samples, load_samples
from osft.errors import ConfigError, DataError, TrainingError
from osft.processes.group import COLLECTIVE_TIMEOUT_AFTER_WATCH, Processes, process_group, sum_over_processes
from osft.processes.preemption import Preemption
from osft.processes.watch import HangWatch
from osft.subspace.attach import merge, project_gradients
from osft.subspace.exchange import gather
from osft.subspace.memory.chain import finish_memory, remove_base_memory
from osft.training.attention import Forward, choose_forward
from osft.training.batches import StepPlan, collate, count_steps, idle_sample, plan_epoch
from osft.training.loss import summed_loss
from osft.training.loss_chart import write_loss_chart
from osft.training.metrics import StepMetrics, peak_memory_gib, read_metrics, reporting
from osft.training.model_files import load_model, save_model
from osft.training.optimizer import MasterParameters, make_optimizer
from osft.training.preparation import PreparedModel, count_trainable, prepare_model
from osft.training.result import METRICS_NAME, RESULT_NAME
from osft.training.train_data import ready_train_data
from osft.workspace import write_json

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
LOSS_CHART_NAME = "loss.html"
FINAL_CHECKPOINT_NAME = "final"


def train(config: TrainingConfig) -> None:
    """Run the training that ``config`` describes; every process must call this.

    The first process leaves ``metrics.jsonl``, ``loss.html``, the checkpoints, with ``remember`` the ``memory``, and,
    last, ``training.json``.

    Raises:
        ConfigError: if a target pattern matches nothing, the scheduler refuses its arguments, or what is in the
            output folder is of another configuration.
        DataError: if the data has no row that fits.
        MissingPathError: if the model does not exist.
        PreemptedError: if SIGTERM asked to stop; the same call goes on.
        TrainingError: if a loss is not finite, or there is nothing to go on from with ``resume="must"``.
    """
    torch.manual_seed(config.seed)
    timeout = timedelta(minutes=config.step_timeout_minutes) + COLLECTIVE_TIMEOUT_AFTER_WATCH
    with (
        process_group(timeout) as processes,
        # Outside of the watch, which tells the other processes that this one stops.
        Preemption(is_launched=processes.store is not None) as preemption,
        HangWatch(processes, config.step_timeout_minutes) as watch,
    ):
        train_data = ready_train_data(config, processes, watch)
        watch.entered("looking for checkpoints")
        checkpoints = Checkpoints(config, processes, train_data, config.checkpoint_directory / RESULT_NAME)
        if checkpoints.run_is_finished:
            return
        watch.entered("loading the model")
        loaded = load_model(config.model_path, processes.device, processes.world_size)
        samples = _load_fitting_samples(config, train_data, loaded.model)
        watch.entered("preparing the model")
        prepared = prepare_model(loaded, config, samples, processes, checkpoints.source, watch.entered)
        # Let go of the weights as they were loaded, of which the prepared model has its own. FSDP's hooks hold them in
        # cycles.
        del loaded
        gc.collect()
        run = _Run(config, prepared, samples, processes, watch, checkpoints, preemption)
        preemption.defer()
        run.train()
        if config.remember:
            run.remember(prepared)
        if processes.is_first:
            _write_result(run)
        checkpoints.finish()
        remove_base_memory(config)


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

    def __init__(
        self,
        config: TrainingConfig,
        prepared: PreparedModel,
        samples: Samples,
        processes: Processes,
        watch: HangWatch,
        checkpoints: Checkpoints,
        preemption: Preemption,
    ) -> None:
        self.config = config
        self.loaded = prepared.loaded
        self.with_weights = prepared.with_weights
        self.samples = samples
        self.processes = processes
        self.watch = watch
        self.checkpoints = checkpoints
        self.preemption = preemption
        self.total_steps = count_steps(len(samples), config.effective_batch_size, config.num_epochs)
        self.masters = MasterParameters(_trained_parameters(prepared.model))
        self.parameters = self.masters.parameters
        self.optimizer = make_optimizer(self.parameters, config)
        self.scheduler = _make_scheduler(self.optimizer, config, self.total_steps)
        self.epoch_checkpoints: list[Path] = []
        self.state = TrainingState(
            model=self.model,
            parameters=self.parameters,
            write_back=self.masters.write_back,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            processes=processes,
        )
        self.step = checkpoints.restore(self.state)

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    def train(self) -> None:
        """Take every step of every epoch."""
        directory = self.config.checkpoint_directory
        forward = self.with_weights(choose_forward, self.model, self.samples)
        metrics_file = directory / METRICS_NAME if self.processes.is_first else None
        with reporting(metrics_file, self.total_steps, self.step) as report:
            for epoch in range(self.config.num_epochs):
                for step in self._steps_left(epoch, forward):
                    metrics, stopping = self._take_step(step, forward)
                    report(metrics)
                    if stopping:
                        self.watch.entered("saving a checkpoint")
                        raise self.checkpoints.stop(self.step, self.total_steps)
                    self.checkpoints.save()
                if self.config.checkpoint_at_epoch:
                    self._save_epoch(epoch)
        self.watch.entered("saving the model")
        if self.config.save_final_checkpoint:
            self._save(directory / FINAL_CHECKPOINT_NAME)

    def remember(self, prepared: PreparedModel) -> None:
        """Write what was learnt before and what this run learnt, for the runs that start from its model."""
        # Its moments are as large as what is trained, and no step follows.
        self.optimizer.state.clear()
        finish_memory(
            prepared.memory,
            self.model,
            prepared.places,
            self.samples,
            self.config,
            self.with_weights,
            self.watch.entered,
        )

    def _steps_left(self, epoch: int, forward: Forward) -> Iterator[StepPlan]:
        """Yield the steps of ``epoch`` that are not taken yet."""
        steps_per_epoch = self.total_steps // self.config.num_epochs
        taken = self.step - epoch * steps_per_epoch
        if taken < steps_per_epoch:
            steps = plan_epoch(self.samples, self.config, self.processes, epoch=epoch, packed=forward.packed)
            yield from islice(steps, taken, None)

    def _save_epoch(self, epoch: int) -> None:
        """Save the model as it is at the end of ``epoch``, unless an earlier attempt has gone past it."""
        self.watch.entered("saving the model")
        target = self.config.checkpoint_directory / f"epoch_{epoch + 1}"
        if self.step * self.config.num_epochs == self.total_steps * (epoch + 1):
            self._save(target)
        self.epoch_checkpoints.append(target)

    def _save(self, target: Path) -> None:
        save_model(
            self.loaded,
            self.config.model_path,
            target,
            writes=self.processes.is_first,
            entered=self.watch.entered,
        )

    def _take_step(self, step: StepPlan, forward: Forward) -> tuple[StepMetrics, bool]:
        """Accumulate the gradient of one effective batch, move the weights, and report; also whether to stop now."""
        self.watch.entered(f"step {self.step + 1}")
        start = time.monotonic()
        loss = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for indices in step.micro_batches:
            samples = [self.samples[index] for index in indices] or [idle_sample(self.samples[step.samples[0]])]
            micro_batch = collate(samples, packed=forward.packed).to(self.processes.device)
            part = self.with_weights(summed_loss, self.model, micro_batch, forward.logits) / step.loss_tokens
            part.backward()
            loss += part.detach()
        # What all must agree on goes with the loss: the first process's clock, and a signal that any of them had.
        is_due = self.processes.is_first and self.checkpoints.is_due(self.step + 1)
        agreed = torch.stack((loss, loss.new_tensor(is_due), loss.new_tensor(self.preemption.requested)))
        sum_over_processes(agreed, self.processes)
        total_loss, is_due, stopping = agreed.tolist()
        for parameter in self.parameters:
            _ensure_gradient(parameter)
        gradient_norm = self._project_and_clip()
        self._check_finite(total_loss, gradient_norm, step)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        if is_due or stopping:
            self.checkpoints.take(self.state, self.step)
        self.masters.write_back()
        merge(self.model)
        metrics = self._report(step, total_loss, gradient_norm, learning_rate, seconds=time.monotonic() - start)
        return metrics, bool(stopping)

    def _project_and_clip(self) -> float:
        """Take the protected part out of the gradients, limit their norm, and return what it was."""
        if self.config.parametrization == "factored":
            # The reference clips first, as mini-trainer does. In the other order its losses differ by 2e-3 in 20 steps.
            gradient_norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            project_gradients(self.model)
        else:
            project_gradients(self.model)
            gradient_norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        return float(gather(gradient_norm))

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


def _trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return what is trained; what has no values only where nothing has any, as at a ratio of 0."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [parameter for parameter in trained if parameter.numel()] or trained


def _ensure_gradient(parameter: nn.Parameter) -> None:
    """Give ``parameter`` a gradient of zero where no token came by, as to an expert: its weight decays all the same."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)


def _write_result(run: _Run) -> None:
    """Write the chart and, last, the file that says the run is finished."""
    config, directory = run.config, run.config.checkpoint_directory
    steps = read_metrics(directory / METRICS_NAME)
    write_loss_chart(steps, directory / LOSS_CHART_NAME)
    result = {
        "final_checkpoint": FINAL_CHECKPOINT_NAME if config.save_final_checkpoint else None,
        "epoch_checkpoints": [path.name for path in run.epoch_checkpoints],
        "metrics_file": METRICS_NAME,
        "loss_chart": LOSS_CHART_NAME,
        "steps": run.total_steps,
        "samples": len(run.samples),
        "first_loss": steps[0].loss,
        "final_loss": steps[-1].loss,
        "trainable_parameters": count_trainable(run.model),
        "seconds": run.checkpoints.seconds,
    }
    saved = {"config": asdict(config), "identity": run.checkpoints.identity, "result": result}
    write_json(directory / RESULT_NAME, saved)
