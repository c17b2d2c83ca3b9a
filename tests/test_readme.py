"""The README's tables say what the code says."""

import inspect
import re
from pathlib import Path

from kfp.dsl.graph_component import GraphComponent

from pipelines.continual_learning import continual_learning
from pipelines.ratio_sweep import ratio_sweep

README = Path(__file__).parent.parent / "README.md"


def shown(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    return "empty" if default == "" else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def rows_of(pipeline: GraphComponent) -> dict[str, tuple[str, str, str]]:
    declared = pipeline.pipeline_spec.root.input_definitions.parameters
    signature = inspect.signature(pipeline.pipeline_func).parameters
    return {name: (name, shown(parameter.default), declared[name].description) for name, parameter in signature.items()}


def test_the_parameter_tables_are_those_of_the_pipelines() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", README.read_text(), flags=re.MULTILINE)

    assert rows == [rows_of(ratio_sweep)["sweep_ratios"], *rows_of(continual_learning).values()]


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README.read_text())

    missing = [link for link in links if not (README.parent / link.partition("#")[0]).exists()]
    assert links
    assert not missing
