"""What a plan says: the memory of one process of a run, and whether the card holds it.

Left out of the numbers, and covered by :data:`RESERVED_GIB`: what CUDA, its libraries' work space and the gaps of
PyTorch's allocator take.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from osft.planning.simulation import REMEMBERING, Traffic

BYTES_PER_GIB = 1 << 30
# The context of CUDA and its libraries takes 0.5 to 0.7, gaps in the allocator the rest. An estimate.
RESERVED_GIB = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What one process of a run takes."""

    on_gpu: bool
    world_size: int
    """Processes of the run, each with a GPU of its own if there are any."""

    parts_gib: Mapping[str, float]
    """Memory on the device by part, at the moment that takes most."""

    peaks_gib: Mapping[str, float]
    """The most that each phase takes."""

    host_gib: float
    """What lies in the host's memory besides, for each process; with ``remember`` at most."""

    trained_values: int
    """Values that AdamW moves."""

    capacity_gib: float | None
    """What the card has; ``None`` if none was named and none is at hand."""

    memory_gib: float = 0.0
    """What the subspace memory that the run leaves takes at most on disk; 0 if it leaves none."""

    memory_passes: int | None = None
    """Passes over the text in which the card measures it; ``None`` if it leaves none, or without a card."""

    traffic: Traffic | None = None
    """What each of several processes receives; ``None`` of one alone."""

    decomposition_seconds: float | None = None
    """About how long the decomposition takes on this machine; ``None`` if it was not asked for."""

    mend: str = ""
    """What to change where it does not fit."""

    @property
    def total_gib(self) -> float:
        """The largest of :attr:`peaks_gib`."""
        return max(self.peaks_gib.values())

    @property
    def peak_phase(self) -> str:
        """The phase that takes most."""
        return max(self.peaks_gib, key=lambda phase: self.peaks_gib[phase])

    @property
    def fits(self) -> bool | None:
        """Whether the card holds it, :data:`RESERVED_GIB` put aside; ``None`` without a card."""
        return None if self.capacity_gib is None else self.total_gib + RESERVED_GIB <= self.capacity_gib

    @property
    def verdict(self) -> str:
        """The plan in a sentence."""
        count = f"of {self.world_size} " if self.world_size > 1 else ""
        kind = "GPU" if self.on_gpu else "CPU process"
        needed = f"{self.total_gib:.1f} GiB on each {f'{count}{kind}s' if count else kind}"
        if self.fits is None:
            return f"Needs {needed}."
        card = f"the card's {self.capacity_gib:.1f} GiB (of which {RESERVED_GIB:.1f} for CUDA itself)"
        if self.fits:
            return f"Fits: needs {needed}, within {card}."
        return f"Needs {needed}, more than {card}. {self.mend}"

    def without_memory(self) -> "MemoryPlan":
        """Return the needs of the same run where it leaves no memory; :attr:`parts_gib` are not known then."""
        peaks = {phase: size for phase, size in self.peaks_gib.items() if phase != REMEMBERING}
        return replace(self, parts_gib={}, peaks_gib=peaks, memory_gib=0.0, memory_passes=None)
