"""A plan for people: a table of parts and a sentence."""

from functools import partial

from rich.console import Group
from rich.table import Table

from osft.planning.memory_plan import BYTES_PER_GIB, MemoryPlan
from osft.planning.simulation import COVARIANCES, GATHERED, PARTS, Traffic


def render_plan(plan: MemoryPlan) -> Group:
    """Return the table of ``plan``, with what follows from it below."""
    table = Table(title=_title(plan), title_justify="left")
    table.add_column(f"at its peak: {plan.peak_phase}")
    table.add_column("GiB", justify="right")
    for part in filter(partial(_has_row, plan), PARTS):
        table.add_row(part, f"{plan.parts_gib.get(part, 0.0):.2f}")
    table.add_section()
    table.add_row("total", f"{plan.total_gib:.2f}")
    for phase, size in plan.peaks_gib.items():
        if phase != plan.peak_phase:
            table.add_row(f"peak of {phase}", f"{size:.2f}")
    if plan.host_gib > 0:
        table.add_row("in the host's memory", f"{plan.host_gib:.2f}")
    if plan.capacity_gib is not None:
        table.add_row("the card", f"{plan.capacity_gib:.2f}")
    return Group(table, *_lines(plan))


def _has_row(plan: MemoryPlan, part: str) -> bool:
    """Return whether a part is shown: not what only a run of several processes has, or only another phase."""
    return {GATHERED: plan.world_size > 1, COVARIANCES: COVARIANCES in plan.parts_gib}.get(part, True)


def _title(plan: MemoryPlan) -> str:
    if plan.world_size == 1:
        return "Memory of one process"
    return f"Memory of each of {plan.world_size} {'GPUs' if plan.on_gpu else 'processes'}"


def _lines(plan: MemoryPlan) -> list[str]:
    lines = [plan.verdict, f"{plan.trained_values:,} values are trained."]
    if plan.decomposition_seconds is not None:
        each = " of each process" if plan.world_size > 1 else ""
        lines.append(f"The decomposition{each} takes about {plan.decomposition_seconds:,.0f} s on this machine.")
    if plan.memory_gib:
        lines.append(f"The memory that it leaves takes at most {plan.memory_gib:.2f} GiB on disk{_passes(plan)}.")
    if plan.traffic is not None:
        lines.append(_describe_traffic(plan.traffic))
    return lines


def _passes(plan: MemoryPlan) -> str:
    if plan.memory_passes is None:
        return ""
    return f" and is measured in {plan.memory_passes} {'pass' if plan.memory_passes == 1 else 'passes'} over the data"


def _describe_traffic(traffic: Traffic) -> str:
    gathered, reduced, at_end = (
        size / BYTES_PER_GIB for size in (traffic.gathered_bytes, traffic.reduced_bytes, traffic.bytes_per_step)
    )
    return (
        f"Each receives {gathered:.1f} GiB of weights and {reduced:.1f} GiB of gradients a micro-batch, and "
        f"{at_end:.1f} GiB at the end of a step."
    )
