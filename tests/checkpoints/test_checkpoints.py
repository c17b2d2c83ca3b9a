"""The checkpoints of a run on their own: whatever happens to the folder, the newest whole one comes back."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from osft.checkpoints.checkpoints import Checkpoints
from osft.checkpoints.state import TrainingState
from osft.config import TrainingConfig
from osft.processes.group import Processes
from osft.subspace.attach import merge
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.parametrization import SubspaceLinear, SubspaceWeight
from osft.training.optimizer import MasterParameters, make_optimizer

ALONE = Processes(global_rank=0, local_rank=0, world_size=1)
CHANGING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGING_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
KEPT = 2


class Moments:
    """Keeps a copy of a folder as it is before each operation that changes it: what a kill there would leave."""

    def __init__(self) -> None:
        self.watched: Path | None = None
        self.copies: list[Path] = []
        self.target = Path()
        sys.addaudithook(self._note)

    def during(self, action: Callable[[], None], folder: Path, copies: Path) -> list[Path]:
        self.copies, self.target, self.watched = [], copies, folder
        try:
            action()
        finally:
            self.watched = None
        return self.copies

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGING_EVENTS or (event == "open" and arguments[2] & CHANGING_FLAGS)
        if changes and self.watched is not None and str(arguments[0]).startswith(str(self.watched)):
            folder, self.watched = self.watched, None
            copy = self.target / str(len(self.copies))
            if folder.exists():
                shutil.copytree(folder, copy)
            self.copies.append(copy)
            self.watched = folder


@pytest.fixture(scope="module")
def moments() -> Moments:
    return Moments()


def make_config(folder: Path) -> TrainingConfig:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (folder / "data").write_text("data")
    return TrainingConfig(
        model_path=str(model), data_path=str(folder / "data"), ckpt_output_dir=str(folder / "out"),
        unfreeze_rank_ratio=0.5, effective_batch_size=1, max_tokens_per_gpu=1, max_seq_len=1, learning_rate=0.1,
        checkpoint_every_steps=1, keep_checkpoints=KEPT,
    )  # fmt: skip


class Run:
    """A process of a training without the training: one weight, AdamW, and random gradients."""

    def __init__(self, folder: Path) -> None:
        config = make_config(folder)
        torch.manual_seed(0)
        weight = torch.randn(6, 4)
        self.checkpoints = Checkpoints(config, ALONE, Path(config.data_path), folder / "out" / "training.json")
        protect = self.checkpoints.source or (lambda name, weight: protect_leading_directions(weight, 0.5))
        self.model = nn.Sequential(SubspaceLinear(SubspaceWeight(weight, protect("0", weight)), None))
        masters = MasterParameters(p for p in self.model.parameters() if p.requires_grad)
        self.optimizer = make_optimizer(masters.parameters, config)
        self.state = TrainingState(
            model=self.model,
            parameters=masters.parameters,
            write_back=masters.write_back,
            optimizer=self.optimizer,
            scheduler=LambdaLR(self.optimizer, lambda step: 1 / (1 + step)),
            processes=ALONE,
        )
        self.step = self.checkpoints.restore(self.state)

    def save(self) -> None:
        """Take one step and save what it came to."""
        for parameter in self.state.parameters:
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.state.scheduler.step()
        self.step += 1
        self.checkpoints.take(self.state, self.step)
        merge(self.model)
        self.checkpoints.save()
        self.checkpoints.stop(self.step, 99)

    def values(self) -> list[torch.Tensor]:
        """Return all that must come back."""
        (core,) = self.state.parameters
        rate = torch.tensor(self.state.scheduler.get_last_lr())
        moments = [torch.as_tensor(value) for value in self.optimizer.state[core].values()]
        bases = [tensor for name, tensor in self.model.named_buffers() if not name.endswith("base")]
        return [tensor.detach().clone() for tensor in (core, rate, torch.get_rng_state(), *moments, *bases)]


ACTIONS = st.one_of(
    st.just(("save",)),
    st.tuples(st.just("crash"), st.integers(0, 99)),
    st.tuples(st.just("damage"), st.integers(0, 99), st.integers(0, 99), st.sampled_from(("flip", "cut", "remove"))),
)


def damage(path: Path, how: str) -> None:
    if how == "remove":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 0x10
        path.write_bytes(content)


def apply(
    action: tuple[Any, ...],
    folder: Path,
    moments: Moments,
    saved: dict[int, list[torch.Tensor]],
    damaged: set[int],
) -> None:
    """Do one thing to the checkpoints in ``folder``; keep what was saved and which steps' checkpoints are damaged."""
    root = folder / "out" / "checkpoints"
    if action[0] == "damage":
        folders = sorted(path for path in root.glob("*"))
        if not folders:
            return
        chosen = folders[action[1] % len(folders)]
        files = sorted(chosen.iterdir())
        damage(files[action[2] % len(files)], action[3])
        damaged |= set(saved) if chosen.name == "bases" else {int(chosen.name.removeprefix("step_"))}
        return
    run = Run(folder)
    with tempfile.TemporaryDirectory() as copies:
        left = moments.during(run.save, root, Path(copies))
        saved[run.step] = run.values()
        damaged.discard(run.step)
        if action[0] == "crash":
            copy = left[action[1] % len(left)]
            shutil.rmtree(root)
            if copy.exists():
                shutil.copytree(copy, root)


# Explaining a failure traces every line, of the files' writing too, which takes minutes.
@settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
@given(actions=st.lists(ACTIONS, min_size=1, max_size=7))
def test_after_any_saves_crashes_at_any_file_operation_and_damages_the_newest_whole_one_comes_back(
    actions: list[tuple[Any, ...]], moments: Moments
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved: dict[int, list[torch.Tensor]] = {}
        damaged: set[int] = set()
        for action in actions:
            apply(action, folder, moments, saved, damaged)
            root = folder / "out" / "checkpoints"
            # A folder has its name only once it is whole.
            there = {int(path.name.removeprefix("step_")) for path in root.glob("step_?")}
            expected = max(there - damaged, default=0)
            run = Run(folder)

            assert run.step == expected
            if expected:
                for found, value in zip(run.values(), saved[expected], strict=True):
                    assert torch.equal(found, value)
            assert len(list(root.glob("step_*"))) <= KEPT + 1
