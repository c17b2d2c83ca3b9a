"""A plan for people: a table of parts and a sentence."""

from rich.console import Group
from rich.table import Table

from osft.planning.plan import MemoryPlan
from osft.planning.simulation import PARTS


def render_plan(plan: MemoryPlan, *, num_gpus: int = 1) -> Group:
    """Return the table of ``plan``, with what follows from it, on ``num_gpus``, below."""
    table = Table(title="Memory of one process", title_justify="left")
    table.add_column(f"at its peak: {plan.peak_phase}")
    table.add_column("GiB", justify="right")
    for part in PARTS:
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
    return Group(table, *_lines(plan, num_gpus))


def _lines(plan: MemoryPlan, num_gpus: int) -> list[str]:
    lines = [plan.verdict, f"{plan.trained_values:,} values are trained."]
    if plan.decomposition_seconds is not None:
        lines.append(f"The decomposition takes about {plan.decomposition_seconds:,.0f} s on this machine.")
    if num_gpus > 1:
        lines.append(f"Each of the {num_gpus} GPUs takes as much: more of them make a step faster, not smaller.")
    return lines
