"""What should have been replaced in a dataset's URI before it got here, and was not.

A pipeline server fills in the macros that it knows (``[[CurrentTime]]``, ``{{$.currentTime}}``) and leaves the others
as they are, and a ``{date:FORMAT}`` that is not written to its end is none. Taken as a name, each would be reported as
a file that does not exist.
"""

import re

from osft.errors import ConfigError

# Both kinds that KFP writes. A pattern of local files has '[[' only to match a bracket, and then no name follows it.
MACRO = re.compile(r"\[\[[A-Za-z]+(?:\.[^\[\]]*)?\]\]|\{\{[$\w][^{}]*\}\}")
DATE_FIELD = re.compile(r"\{\s*date\b", re.IGNORECASE)


def require_filled(uri: str) -> None:
    """Refuse a URI in which a macro or a date field is left.

    Raises:
        ConfigError: if there is one; of the URI nothing else is repeated, since a query may hold a secret.
    """
    if macro := MACRO.search(uri):
        raise ConfigError(
            f"the dataset URI has '{macro[0]}', which the pipeline server did not fill in. Write {{date:%Y-%m-%d}} in "
            "its place, the day that data_date names."
        )
    if DATE_FIELD.search(uri):
        raise ConfigError(
            "the dataset URI has '{date' without a format or without the brace at its end. Write {date:%Y-%m-%d}."
        )
