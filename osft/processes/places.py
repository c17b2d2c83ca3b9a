"""Where the processes of a run are, and who of them keeps the others waiting."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from osft.errors import TrainingError

SECONDS_PER_MINUTE = 60.0
# Who is in a call of these waits for other processes.
COLLECTIVE_MODULES = (
    "torch.distributed.distributed_c10d",
    "torch.distributed._functional_collectives",
    "torch.distributed.fsdp.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the main thread of a process is."""

    global_rank: int
    beat: int
    """Counts up with every post."""

    order: int
    """How many phases it has entered."""

    phase: str
    seconds: float
    """Since it has entered this phase."""

    line: str
    """The line of Python that it is in."""

    in_collective: bool
    """Whether that is a wait for the others."""


def describe_hang(before: Sequence[Place], after: Sequence[Place]) -> TrainingError:
    """Return the error that names the processes which keep the others waiting.

    Those are, in this order, the ones that did not post between the two looks, the ones that have entered fewer
    phases, the ones that do not wait in a collective; else nobody can tell them apart.

    Args:
        before: where every process was.
        after: the same, some beats later.
    """
    beats = {place.global_rank: place.beat for place in before}
    silent = [place for place in after if place.beat == beats.get(place.global_rank)]
    behind = [place for place in after if place.order < max(other.order for other in after)]
    busy = [place for place in after if not place.in_collective]
    culprits = next((group for group in (silent, behind, busy) if 0 < len(group) < len(after)), list(after))
    verdict = "; ".join(_sentence(place, silent=place in silent) for place in culprits)
    others = [place for place in after if place not in culprits]
    ranks = ", ".join(str(place.global_rank) for place in others)
    waiting = f"; rank {ranks} waited for it in {others[0].phase}" if others else ""
    return TrainingError(
        f"{verdict}{waiting}. Look at that process and its node, or raise step_timeout_minutes; "
        "the same call goes on from the last checkpoint."
    )


def _sentence(place: Place, *, silent: bool) -> str:
    if silent:
        return f"rank {place.global_rank} has stopped answering in {place.phase}"
    return f"rank {place.global_rank} has been in {place.phase} for {in_minutes(place.seconds)}, at {place.line}"


def in_minutes(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds / SECONDS_PER_MINUTE:.1f} min"


def line_of_main_thread() -> tuple[str, bool]:
    """Return the line that the main thread is in, and whether it waits there for other processes."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    line = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "no line of Python"
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(COLLECTIVE_MODULES):
            return line, True
        frame = frame.f_back
    return line, False
