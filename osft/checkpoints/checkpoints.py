"""A run's checkpoints: what to go on from, when to save, what stays.

The first process looks at the files and the clock and tells the others, so that all do the same. A failed save is
logged and tried again when the next one is due: a training that can go on is not ended for it, and what was saved
before stays as it is.

The optimizer steps taken are the position in the data: the order of the samples follows from seed and epoch alone.
"""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from osft.checkpoints.folder import (
    BASES_NAME,
    FOLDER_NAME,
    MARKER_NAME,
    Marker,
    damages,
    remove,
    remove_all,
    remove_older,
    remove_unfinished,
    step_folders,
    step_of,
)
from osft.checkpoints.identity import require_same, run_identity
from osft.checkpoints.state import TrainingState, bases, load_tensors, protected_ranks, room_for_bases
from osft.checkpoints.writer import Together, Writer, take_copy
from osft.config import TrainingConfig
from osft.errors import PreemptedError, TrainingError, one_line
from osft.processes.group import Processes
from osft.subspace.attach import Source
from osft.workspace import ManifestFile, read_json

logger = logging.getLogger(__name__)

SECONDS_PER_MINUTE = 60.0
# A step that waits longer than this for the save before is worth a line in the log.
NOTABLE_WAIT_SECONDS = 1.0
# What torch.distributed.checkpoint says of every save and load in a run of one process.
SINGLE_PROCESS_WARNING = "torch.distributed is disabled, unavailable or uninitialized"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A whole checkpoint to go on from."""

    folder: Path
    marker: Marker
    bases: Marker


class Checkpoints:
    """The checkpoints of one run. Every process must make the same calls, in this order.

    :attr:`source`, where there is something to go on from, says how much of each weight is protected; :meth:`restore`
    fills the rest in. After each step, :meth:`take` comes before the merged weights are brought up to date and
    :meth:`save` after it; :meth:`finish` ends a run whose result is on disk.
    """

    def __init__(self, config: TrainingConfig, processes: Processes, train_data: Path, result_file: Path) -> None:
        """Find the newest whole checkpoint to go on from.

        Args:
            config: the whole of the run's configuration.
            processes: this process and the others.
            train_data: the token ids that the run trains on.
            result_file: JSON that a finished run leaves, with :attr:`identity` under ``identity``.

        Raises:
            ConfigError: if what is there is of another configuration and ``resume`` is not ``never``.
            TrainingError: if there is nothing to go on from and ``resume`` is ``must``.
        """
        warnings.filterwarnings("ignore", message=SINGLE_PROCESS_WARNING, category=UserWarning)
        self._config = config
        self._root = config.checkpoint_directory / FOLDER_NAME
        self._result_file = result_file
        self._together = Together(processes)
        self._writer = Writer(self._together)
        self._start = self._last_save = time.monotonic()
        self._taken: _Taken | None = None
        self._failure: str | None = None
        self.identity: Mapping[str, Any] = self._together.by_first(lambda: run_identity(config, train_data))
        """What a run must share to go on from these checkpoints, as JSON."""
        self.run_is_finished: bool = self._together.by_first(self._prepare)
        """Whether a run of the same configuration left its result already; then there is nothing to do."""
        self.found = None if self.run_is_finished else self._find()
        """What the run goes on from; ``None``: from the start."""
        self._saved_step = step_of(self.found.folder) if self.found else 0
        self._has_bases = self.found is not None

    @property
    def seconds(self) -> float:
        """Wall time of the run so far; of earlier attempts, up to the checkpoint that was gone on from."""
        before = float(self.found.marker.details["seconds"]) if self.found else 0.0
        return before + time.monotonic() - self._start

    def _prepare(self) -> bool:
        """Check or remove what earlier runs left; return whether one has finished with the same configuration."""
        if self._config.resume == "never":
            self._result_file.unlink(missing_ok=True)
            remove_all(self._root)
            return False
        finished = _identity_of_result(self._result_file)
        if finished is not None:
            require_same(finished, self.identity, f"{self._result_file}, the result of a finished training,")
            logger.info("%s: a run of the same configuration has finished; nothing to do", self._result_file)
            # It may have been killed before it could.
            remove_all(self._root)
            return True
        # A file that is not a result must not pass for one.
        self._result_file.unlink(missing_ok=True)
        remove_unfinished(self._root)
        return False

    def _find(self) -> Found | None:
        """Return the newest checkpoint that is whole, with its bases; all others are removed."""
        markers = self._together.by_first(self._markers)
        bases_folder = self._root / BASES_NAME
        bases_marker = markers.pop(bases_folder, None)
        if bases_marker is not None and markers and not self._is_damaged(bases_folder, bases_marker):
            for folder, marker in markers.items():
                if not self._is_damaged(folder, marker):
                    return Found(folder=folder, marker=marker, bases=bases_marker)
        self._together.by_first(self._start_anew)
        return None

    def _markers(self) -> dict[Path, Marker]:
        """Return the markers of checkpoints, the newest first, and of the bases."""
        folders = step_folders(self._root)
        markers = {}
        for folder in (*folders, self._root / BASES_NAME) if folders else ():
            if (marker := Marker.load(folder)) is None:
                logger.warning("%s is left out: %s is missing or damaged", folder, MARKER_NAME)
                continue
            require_same(marker.identity, self.identity, f"{folder}, a checkpoint,")
            markers[folder] = marker
        return markers

    def _is_damaged(self, folder: Path, marker: Marker) -> bool:
        """Return whether a file of ``folder`` is not as it was written; each process reads its share of them."""
        processes = self._together.processes
        share = marker.files[processes.global_rank :: processes.world_size]
        found = [line for lines in self._together.by_all(lambda: damages(folder, share)) for line in lines]
        if found and processes.is_first:
            logger.warning("%s is damaged and left out: %s", folder, "; ".join(found))
        return bool(found)

    def _start_anew(self) -> None:
        if self._config.resume == "must":
            raise TrainingError(
                f"{self._root}: there is no whole checkpoint to go on from, which resume='must' asks for. "
                "Give the ckpt_output_dir of the interrupted run, or resume='auto' to start anew."
            )
        if step_folders(self._root):
            logger.warning("%s: no checkpoint is whole; the training starts anew", self._root)
        remove_all(self._root)

    @property
    def source(self) -> Source | None:
        """What to take for what is protected, so that nothing is decomposed again; ``None`` without a checkpoint."""
        return room_for_bases(self.found.bases.details["protected_ranks"]) if self.found else None

    def restore(self, state: TrainingState) -> int:
        """Bring ``state`` to where the run goes on from; return the steps behind it, 0 without a checkpoint."""
        if self.found is None:
            return 0
        folder, world_size = self.found.folder, int(self.found.marker.details["world_size"])
        load_tensors(dict(bases(state.model)), self._root / BASES_NAME, self._together.group)
        state.load(folder, world_size=world_size, group=self._together.group)
        self._together.by_first(self._remove_damaged)
        logger.info("%s: the training goes on after step %d", folder, self._saved_step)
        self._last_save = time.monotonic()
        return self._saved_step

    def _remove_damaged(self) -> None:
        for folder in step_folders(self._root):
            if step_of(folder) > self._saved_step:
                remove(folder)

    def is_due(self, step: int) -> bool:
        """Return whether the state after ``step`` is to be saved; the first process's answer counts for all."""
        every_steps = self._config.checkpoint_every_steps
        every_seconds = self._config.checkpoint_every_minutes * SECONDS_PER_MINUTE
        is_due_by_steps = every_steps is not None and step % every_steps == 0
        return is_due_by_steps or 0 < every_seconds <= time.monotonic() - self._last_save

    def take(self, state: TrainingState, step: int) -> None:
        """Copy ``state`` after ``step``, between the optimizer's step and :func:`osft.subspace.attach.merge`."""
        self._wait_for_save_before()
        self._last_save = time.monotonic()
        self._taken = _Taken(
            step=step,
            state=take_copy(state.saved()),
            details={"step": step, "seconds": self.seconds, "world_size": self._together.processes.world_size},
            bases={} if self._has_bases else bases(state.model),
            protected_ranks=protected_ranks(state.model),
        )

    def _wait_for_save_before(self) -> None:
        waiting_since = time.monotonic()
        self._writer.wait()
        if (waited := time.monotonic() - waiting_since) > NOTABLE_WAIT_SECONDS and self._together.processes.is_first:
            logger.warning(
                "the training waited %.0f s for the checkpoint before. Save less often: checkpoint_every_steps, "
                "checkpoint_every_minutes.",
                waited,
            )

    def save(self) -> None:
        """Write what was taken, if anything was, in the background."""
        if self._taken is not None:
            taken, self._taken = self._taken, None
            self._writer.start(lambda: self._write(taken))

    def _write(self, taken: "_Taken") -> None:
        is_first = self._together.processes.is_first
        folder = self._root / f"step_{taken.step}"
        try:
            if not self._has_bases:
                details = {"protected_ranks": taken.protected_ranks}
                self._writer.write(taken.bases, self._root / BASES_NAME, self._marker(details))
                self._has_bases = True
            self._writer.write(taken.state, folder, self._marker(taken.details))
        except OSError as error:
            self._failure = one_line(error)
            if is_first:
                logger.error(
                    "%s: the checkpoint cannot be saved (%s); the training goes on, and so does what was saved before. "
                    "Make room there, or look at its permissions.",
                    folder,
                    self._failure,
                )
            return
        self._failure, self._saved_step = None, taken.step
        if is_first:
            self._remove_older()

    def _marker(self, details: Mapping[str, Any]) -> Callable[[tuple[ManifestFile, ...]], Marker]:
        return lambda files: Marker(identity=self.identity, files=files, details=details)

    def _remove_older(self) -> None:
        try:
            remove_older(self._root, self._config.keep_checkpoints)
        except OSError as error:
            logger.warning("%s: older checkpoints cannot be removed (%s)", self._root, one_line(error))

    def stop(self, step: int, total_steps: int) -> PreemptedError:
        """Wait until what was taken is on disk; return the error that says from where the same call goes on."""
        self.save()
        self._writer.wait()
        stopped = f"{self._config.ckpt_output_dir}: stopped by SIGTERM after step {step} of {total_steps}; "
        if self._failure is None:
            return PreemptedError(f"{stopped}the same call goes on from there.")
        goes_on = f"after step {self._saved_step}" if self._saved_step else "from the start"
        return PreemptedError(
            f"{stopped}this state could not be saved ({self._failure}), so the same call goes on {goes_on}. "
            "Make room there, or look at its permissions."
        )

    def finish(self) -> None:
        """Wait for a save under way and remove all checkpoints; after the result is on disk."""
        self._writer.close()
        if self._together.processes.is_first:
            remove_all(self._root)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken:
    """A copy of the state, until it is on disk."""

    step: int
    state: Mapping[str, Any]
    details: Mapping[str, Any]
    bases: Mapping[str, Tensor]
    """Not copied: they never change. Empty if they are on disk."""

    protected_ranks: Mapping[str, list[int]]


def _identity_of_result(result_file: Path) -> Mapping[str, Any] | None:
    """Return the identity that a finished run left; ``None`` if there is no finished run of this version."""
    try:
        return read_json(result_file)["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
