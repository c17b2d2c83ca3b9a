"""All pipelines, by the names under which they are compiled, uploaded and run."""

from kfp.dsl.base_component import BaseComponent

from osft.errors import ConfigError
from pipelines.continual_learning import continual_learning
from pipelines.ratio_sweep import ratio_sweep

PIPELINES: dict[str, BaseComponent] = {pipeline.name: pipeline for pipeline in (continual_learning, ratio_sweep)}
DEFAULT_PIPELINE = continual_learning.name


def choose_pipeline(name: str) -> BaseComponent:
    """Return the pipeline ``name``.

    Raises:
        ConfigError: if there is none.
    """
    if name not in PIPELINES:
        raise ConfigError(f"--pipeline '{name}' is not one of {', '.join(PIPELINES)}.")
    return PIPELINES[name]
