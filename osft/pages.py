"""How an HTML page is written: from a template that escapes what it is given, to a file that appears whole."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined

from osft.workspace import atomic_file


def write_page(
    target: Path,
    loader: BaseLoader,
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]],
    values: Mapping[str, Any],
) -> None:
    """Render ``template`` and write the page to ``target``, atomically.

    Args:
        target: the file to write.
        loader: where templates are found.
        template: name of one; all that is put into it is escaped, and a value that it lacks is an error.
        filters: functions that it may call, by name.
        values: what it shows.
    """
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    page = environment.get_template(template).render(values)
    with atomic_file(target) as file:
        # A lone surrogate, which JSON can spell and UTF-8 cannot, is shown as a question mark.
        file.write(page.encode("utf-8", errors="replace"))


def format_count(number: int) -> str:
    """Return a whole number with commas between the thousands."""
    return f"{number:,}"
