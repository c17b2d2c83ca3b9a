"""Where a version's files are, for those who do not have the workspace mounted at the same path.

What the registry keeps is what KServe takes as ``storageUri``: ``pvc://<claim>/<path in the volume>``, or ``s3://``
where a team copies the volume's models to a bucket. RHOAI's dashboard offers an ``s3://`` for deployment if its query
says ``endpoint`` and, optionally, ``defaultRegion``.
"""

import re
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from osft.errors import ConfigError
from osft.registration.connection import read_server
from osft.workspace import PVC_SCHEME

FORMS = f"{PVC_SCHEME}CLAIM[/PATH] or s3://BUCKET[/PREFIX][?endpoint=https://HOST&defaultRegion=REGION]"
PVC, S3 = "pvc", "s3"
# Of claims, and of buckets, the characters that Kubernetes and S3 allow.
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
ENDPOINT, REGION = "endpoint", "defaultRegion"
REGION_NAME = re.compile(r"[a-z0-9-]{1,63}")
# A fragment may be a key as well; the other characters would change the address on its way.
NOT_OF_A_PLACE = re.compile(r"[@#\s\x00-\x1f\x7f]")


def workspace_location(location: str, claim: str) -> str:
    """Return where the workspace is: ``location``, or the volume of ``claim`` if it is empty.

    Raises:
        ConfigError: if it is neither a volume nor a bucket, or carries credentials.
    """
    place = location.strip() or f"{PVC_SCHEME}{claim}"
    try:
        split = urlsplit(place)
        query = parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query))
    except ValueError:
        # Not chained: it may quote what is a key.
        raise ConfigError(f"the registry's location is not an address. Give {FORMS}.") from None
    names = [name for name, _ in query]
    is_more = NOT_OF_A_PLACE.search(place) or place.endswith("?") or len(names) > len(set(names))
    if is_more or not set(names) <= ({ENDPOINT, REGION} if split.scheme == S3 else set()):
        # Not repeated: what is too much in it may be a key.
        raise ConfigError(f"the registry's location says more than a place, such as credentials. Give {FORMS}.")
    _check_query(dict(query))
    if not _is_place(split) or not place.startswith((PVC_SCHEME, f"{S3}://")):
        raise ConfigError(f"the registry's location '{place}' is neither a volume nor a bucket. Give {FORMS}.")
    return place


def uri_in(location: str, path: str) -> str:
    """Return the address of ``path``, relative to the workspace, which is at ``location``."""
    place, mark, query = location.partition("?")
    return f"{place.rstrip('/')}/{path}{mark}{query}"


def _check_query(query: Mapping[str, str]) -> None:
    """Refuse what is neither a server nor a region, without repeating it."""
    if ENDPOINT in query and read_server(query[ENDPOINT]) is None:
        raise ConfigError(f"the registry's location: its {ENDPOINT} is not https://HOST[:PORT]. Give {FORMS}.")
    if REGION in query and not REGION_NAME.fullmatch(query[REGION]):
        raise ConfigError(f"the registry's location: its {REGION} is not the name of a region. Give {FORMS}.")


def _is_place(split: SplitResult) -> bool:
    steps = unquote(split.path).split("/")
    return split.scheme in (PVC, S3) and bool(NAME.fullmatch(split.netloc)) and ".." not in steps
