"""What to change where a run does not fit: the change that costs least, and how many GPUs would do without one.

What costs time alone comes first. Then the subspace memory goes, where that is enough, before rows are cut to fewer
tokens or fewer values are trained: a run that stands alone loses nothing by it, and the next one of a chain writes over
what this one learns.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from osft.config import MAX_BETA_IN_BFLOAT16, TrainingConfig
from osft.planning.memory_plan import MemoryPlan

# Fewer tokens than this leave a GPU idle.
MIN_USEFUL_TOKENS = 512
# How many times as many GPUs are tried where a run does not fit.
MORE_GPUS = (2, 4, 8)

PlanAnew = Callable[[TrainingConfig, int], MemoryPlan]
"""Plans a run of so many processes for the same card."""


def find_mend(config: TrainingConfig, plan: MemoryPlan, plan_anew: PlanAnew) -> str:
    """Say which change makes it fit, the one that costs least first, and how many GPUs would without a change.

    Args:
        config: a run that does not fit.
        plan: its plan.
        plan_anew: plans a changed run.
    """
    mends = []
    for changed, smaller in _smaller_plans(config, plan, plan_anew):
        if smaller.fits:
            mends.append(f"With {_describe_changes(config, changed)} it needs {smaller.total_gib:.1f} GiB.")
            break
    for factor in MORE_GPUS if config.parametrization == "linear" else ():
        spread = plan_anew(config, factor * plan.world_size)
        if spread.fits:
            mends.append(f"On {spread.world_size} GPUs it needs {spread.total_gib:.1f} GiB on each.")
            break
    return " ".join(mends) or (
        f"Neither save_memory=True, {'nor remember=False, ' if config.remember else ''}nor fewer tokens, nor a smaller "
        f"ratio, nor {MORE_GPUS[-1]} times as many GPUs is enough: take a larger card or a smaller model."
    )


def _smaller_plans(
    config: TrainingConfig, plan: MemoryPlan, plan_anew: PlanAnew
) -> Iterator[tuple[TrainingConfig, MemoryPlan]]:
    """Yield changed runs with their plans, what costs least first."""
    planned = [(config, plan)]
    if _may_save(config):
        config = replace(config, save_memory=True)
        planned.append((config, plan_anew(config, plan.world_size)))
        yield planned[-1]
    yield from map(_without_memory, planned)
    for smaller in _smaller_runs(config):
        smaller_plan = plan_anew(smaller, plan.world_size)
        yield smaller, smaller_plan
        yield _without_memory((smaller, smaller_plan))


def _may_save(config: TrainingConfig) -> bool:
    moments_may_be_small = max(config.beta1, config.beta2) <= MAX_BETA_IN_BFLOAT16
    return config.parametrization == "linear" and moments_may_be_small and not config.save_memory


def _without_memory(planned: tuple[TrainingConfig, MemoryPlan]) -> tuple[TrainingConfig, MemoryPlan]:
    """Return a run and its plan without the memory that it would leave; one that leaves none as it is."""
    config, plan = planned
    return replace(config, remember=False, calibration=None), plan.without_memory()


def _smaller_runs(config: TrainingConfig) -> Iterator[TrainingConfig]:
    """Yield runs that take fewer tokens at once, and then train fewer values as well."""
    for _ in range(2):
        tokens = config.max_tokens_per_gpu // 2
        if tokens >= max(MIN_USEFUL_TOKENS, config.block_size or 0):
            # A row must fit one micro-batch.
            config = replace(config, max_tokens_per_gpu=tokens, max_seq_len=min(tokens, config.max_seq_len))
            yield config
    yield replace(config, unfreeze_rank_ratio=config.unfreeze_rank_ratio / 2)


def _describe_changes(config: TrainingConfig, changed: TrainingConfig) -> str:
    names = ("save_memory", "max_tokens_per_gpu", "max_seq_len", "unfreeze_rank_ratio", "remember")
    new = {name: getattr(changed, name) for name in names if getattr(changed, name) != getattr(config, name)}
    return ", ".join(f"{name}={value}" for name, value in new.items())
