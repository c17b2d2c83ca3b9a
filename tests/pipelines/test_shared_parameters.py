"""A pipeline that takes over the parameters of another one."""

import inspect
from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.training_placement import training_placement
from pipelines.continual_learning import continual_learning
from pipelines.ratio_sweep import ratio_sweep
from pipelines.shared_parameters import with_parameters_of


@dsl.pipeline
def original(text: str, ratio: float = 0.25, seed: int = 42) -> None:
    """The original.

    Args:
        text: What is read.
        ratio: A share.
        seed: A seed.
    """
    training_placement(
        run_id=text, runtime="", num_nodes=1, gpus_per_node=seed, cpu="1", memory="1Gi", image="", queue="", labels={},
        node_selector={}, tolerations=[], env={}, deadline_hours=ratio, hub_secret="", workspace_pvc="",
    )  # fmt: skip


def test_names_types_defaults_and_descriptions_are_taken_over_and_one_is_replaced() -> None:
    seen: dict[str, Any] = {}
    ratios = inspect.Parameter("ratios", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=list, default=[0.5, 1])

    @with_parameters_of(original, instead_of="ratio", parameter=ratios, description="Several shares.")
    def several(given: Mapping[str, Any]) -> None:
        """Another one."""
        seen.update(given)

    assert str(inspect.signature(several)) == "(text: str, ratios: list = [0.5, 1], seed: int = 42) -> None"
    assert inspect.getdoc(several) == (
        "Another one.\n\nArgs:\n    text: What is read.\n    ratios: Several shares.\n    seed: A seed."
    )
    several("a", [1], 7)
    assert seen == {"text": "a", "ratios": [1], "seed": 7}


def test_the_sweep_has_the_parameters_of_the_pipeline_but_for_its_ratios() -> None:
    theirs, ours = (
        dict(pipeline.pipeline_spec.root.input_definitions.parameters) for pipeline in (continual_learning, ratio_sweep)
    )

    assert set(theirs) - set(ours) == {"train_unfreeze_rank_ratio"}
    assert set(ours) - set(theirs) == {"sweep_ratios"}
    assert all(theirs[name] == ours[name] for name in set(theirs) & set(ours))
    assert ours["sweep_ratios"].description.startswith("Shares of each weight's singular directions")
