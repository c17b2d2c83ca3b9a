"""Learning one task until it is known.

The stopping rule is the same for every method, so that they are compared at equal learning and not at equal steps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.sequences.methods import Ready
from benchmarks.sequences.texts import Task, exact_match, pad
from demo.pretraining import answer_loss
from osft.data.samples import Sample
from osft.subspace.attach import merge, project_gradients

BATCH_SIZE = 10
WARMUP_STEPS = 10
MAX_GRADIENT_NORM = 1.0
# Of a task's questions. Waiting for the last few takes as many steps again, and harms what was learnt before.
ENOUGH = 0.95
# Above it few questions are right, and asking them would only cost time.
LOSS_TO_ASK = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Learnt:
    """What it took to learn a task."""

    steps: int
    seconds: float
    """Of this process's processor time, so that a busy machine does not show."""

    accuracy: float
    """Share of the task's questions that are right, 0 to 1."""


def learn(ready: Ready, task: Task, learning_rate: float, seed: int, max_epochs: int) -> Learnt:
    """Train until :data:`ENOUGH` of the questions are right at the end of an epoch, at most ``max_epochs``."""
    started = time.process_time()
    parameters = ready.parameters
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    random = Random(seed)
    steps, accuracy = 0, 0.0
    for epoch in range(1, max_epochs + 1):
        rows = random.sample(task.rows, len(task.rows))
        batches = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        losses = []
        for batch in batches:
            losses.append(take_step(ready.model, batch, parameters, optimizer))
            warmup.step()
        steps += len(batches)
        if epoch == max_epochs or sum(losses) / len(losses) < LOSS_TO_ASK:
            accuracy = exact_match(ready.model, task.questions)
            if accuracy >= ENOUGH:
                break
    return Learnt(steps=steps, seconds=time.process_time() - started, accuracy=accuracy)


def take_step(
    model: PreTrainedModel,
    batch: Sequence[Sample],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> float:
    """Take one step as the engine takes it, and return the loss before it."""
    loss = answer_loss(model, *pad(batch, model.config.pad_token_id))
    loss.backward()
    project_gradients(model)
    nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()
    merge(model)
    return loss.item()
