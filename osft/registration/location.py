"""Where a version's files are, for those who do not have the workspace mounted at the same path.

What the registry keeps is what KServe takes as ``storageUri``: ``pvc://<claim>/<path in the volume>``, or ``s3://``
where a team copies the volume's models to a bucket. RHOAI's dashboard offers an ``s3://`` for deployment if its query
says ``endpoint`` and, optionally, ``defaultRegion``.
"""

import re
from urllib.parse import parse_qsl, urlsplit

from osft.errors import ConfigError
from osft.workspace import PVC_SCHEME

FORMS = f"{PVC_SCHEME}CLAIM[/PATH] or s3://BUCKET[/PREFIX][?endpoint=URL&defaultRegion=REGION]"
PVC, S3 = "pvc", "s3"
# Of claims, and of buckets, the characters that Kubernetes and S3 allow.
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
S3_QUERY = {"endpoint", "defaultRegion"}


def workspace_location(location: str, claim: str) -> str:
    """Return where the workspace is: ``location``, or the volume of ``claim`` if it is empty.

    Raises:
        ConfigError: if it is neither a volume nor a bucket, or carries credentials.
    """
    place = location or f"{PVC_SCHEME}{claim}"
    try:
        split = urlsplit(place)
        query = dict(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
    except ValueError as error:
        raise ConfigError(f"the registry's location is not an address. Give {FORMS}.") from error
    if "@" in split.netloc or not set(query) <= (S3_QUERY if split.scheme == S3 else set()):
        # Not repeated: what is too much in it may be a key.
        raise ConfigError(f"the registry's location says more than a place, such as credentials. Give {FORMS}.")
    if split.scheme not in (PVC, S3) or not NAME.fullmatch(split.netloc) or split.fragment or ".." in split.path:
        raise ConfigError(f"the registry's location '{place}' is neither a volume nor a bucket. Give {FORMS}.")
    return place


def uri_in(location: str, path: str) -> str:
    """Return the address of ``path``, relative to the workspace, which is at ``location``."""
    place, mark, query = location.partition("?")
    return f"{place.rstrip('/')}/{path}{mark}{query}"
