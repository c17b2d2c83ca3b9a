"""The README's tables say what the code says."""

import inspect
import re
from pathlib import Path

from pipelines.continual_learning import continual_learning

README = Path(__file__).parent.parent / "README.md"


def shown(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    return "empty" if default == "" else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_the_parameter_table_is_that_of_the_pipeline() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", README.read_text(), flags=re.MULTILINE)

    declared = continual_learning.pipeline_spec.root.input_definitions.parameters
    signature = inspect.signature(continual_learning.pipeline_func).parameters
    assert rows == [
        (name, shown(parameter.default), declared[name].description) for name, parameter in signature.items()
    ]


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README.read_text())

    missing = [link for link in links if not (README.parent / link.partition("#")[0]).exists()]
    assert links
    assert not missing
