"""Writing a checkpoint while the training goes on, and knowing when every process has written its part.

Saving takes a copy in the host's memory, the only part that a step waits for, and a thread writes it. That is what
torch.distributed.checkpoint's ``async_save`` does; it is taken apart here because more follows the writing than that
knows of: the bases before the first checkpoint, checksums, the marker, the rename. Messages between the processes must
come in one order everywhere, so they all come from one thread, over a process group of its own.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from osft.checkpoints.folder import Marker, complete, partial_folder
from osft.errors import OsftError, one_line
from osft.processes.group import Processes
from osft.workspace import ManifestFile, sha256_of_file

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The others wait for the process that writes the most, to a volume that may be slow.
WRITING_TIMEOUT = timedelta(hours=2)


class Together:
    """What the processes of a run tell each other about files; every process must make the same calls."""

    def __init__(self, processes: Processes) -> None:
        """Open a group of its own, on the CPU: a thread that writes must not meet the collectives of a step."""
        self.processes = processes
        several = processes.world_size > 1
        self.group = dist.new_group(backend="gloo", timeout=WRITING_TIMEOUT) if several else None

    def by_all(self, compute: Callable[[], Result]) -> list[Result]:
        """Let every process compute, and return all results, or raise the first error, in every process."""
        outcome: Result | OSError
        try:
            outcome = compute()
        except OSError as error:
            outcome = error
        outcomes: list[Any] = [outcome]
        if self.group is not None:
            outcomes = [None] * self.processes.world_size
            dist.all_gather_object(outcomes, outcome, group=self.group)
        for each in outcomes:
            if isinstance(each, OSError):
                raise each
        return outcomes

    def by_first(self, compute: Callable[[], Result]) -> Result:
        """Let the first process compute, and return its result, or raise its error, in every process."""
        outcome: list[Any] = [None, None]
        if self.processes.is_first:
            try:
                outcome[0] = compute()
            except (OsftError, OSError) as error:
                outcome[1] = error
        if self.group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


class Writer:
    """Writes folders of tensors, one at a time, in a thread."""

    def __init__(self, together: Together) -> None:
        """Start the thread when it is needed first."""
        self._together = together
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="osft-checkpoint")
        self._writing: Future[None] | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the thread has not ended what it was given."""
        return self._writing is not None and not self._writing.done()

    def start(self, work: Callable[[], None]) -> None:
        """Let the thread do ``work``, which calls :meth:`write`; what was given before must have been waited for."""
        self._writing = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for the thread and raise what it met.

        Raises:
            OSError: if a file could not be written in any process.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def write(
        self, state: Mapping[str, Any], target: Path, marker: Callable[[tuple[ManifestFile, ...]], Marker]
    ) -> None:
        """Write ``state`` to the folder ``target``, whole or not at all; every process must call this.

        Raises:
            OSError: in every process, if a file could not be written in any of them.
        """
        together, partial = self._together, partial_folder(target)
        try:
            _write_tensors(state, partial, together.group)
            files = together.by_all(lambda: _files_of(partial, together.processes))
            together.by_first(lambda: complete(target, marker(tuple(file for part in files for file in part))))
        except (CheckpointException, OSError) as error:
            if together.processes.is_first:
                # On a full disk the place that it took is needed.
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(_reason(error)) from error


def take_copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``state`` with its tensors copied to the host's memory, where the training does not change them."""
    return BlockingAsyncStager().stage(dict(state))


def _write_tensors(state: Mapping[str, Any], folder: Path, group: dist.ProcessGroup | None) -> None:
    dcp.save(
        dict(state),
        storage_writer=FileSystemWriter(folder),
        planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=group,
        no_dist=group is None,
    )


def _files_of(folder: Path, processes: Processes) -> list[ManifestFile]:
    """Return size and sha256 of the files that this process wrote; the first one's are also those of all."""
    paths = list(folder.glob(f"__{processes.global_rank}_*"))
    if processes.is_first:
        paths.append(folder / ".metadata")
    return [ManifestFile(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path)) for path in paths]


def _reason(error: BaseException) -> str:
    """Return in one line why a file was not written, and in which process."""
    if not isinstance(error, CheckpointException):
        return one_line(error)
    return one_line(OSError("; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())))
