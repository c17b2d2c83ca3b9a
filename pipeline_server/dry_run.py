"""A dry run: the same client and the same calls, over a transport that writes requests down and sends none.

It answers as a server that holds nothing yet, so everything would be created. What is written has no headers, and so
no token, and no query of a link to the web, which may be a secret.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from kfp_server_api import Configuration
from kfp_server_api.rest import RESTClientObject, RESTResponse
from urllib3 import HTTPResponse

from osft.data.download.links import public_uri

# What is created by a POST to a path that ends so, and the field that names it from then on.
CREATED = {
    "/pipelines": "pipeline_id",
    "/upload_version": "pipeline_version_id",
    "/experiments": "experiment_id",
    "/runs": "run_id",
    "/recurringruns": "recurring_run_id",
}


class DryRun(RESTClientObject):
    """Stands in for the way to the server."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """Write each request as one line with ``write``."""
        super().__init__(Configuration())
        self._write = write

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Any = None,
        body: Any = None,
        post_params: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        """Write the request down and answer it."""
        query = [(name, value) for name, value in query_params or [] if value not in (None, "")]
        line = f"{method} {url}" + (f"?{'&'.join(f'{name}={value}' for name, value in query)}" if query else "")
        for _, (file, content, _) in post_params or []:
            line += f" {Path(file).name} ({len(content)} bytes)"
        if body:
            line += f" {orjson.dumps(_public(body)).decode()}"
        self._write(line)
        answer = {**(body or {}), **dict(query)}
        for path, field in CREATED.items():
            if method == "POST" and urlsplit(url).path.endswith(path):
                answer[field] = field.upper()
        if "pipelineid" in answer:
            answer["pipeline_id"] = answer["pipelineid"]
        content = orjson.dumps(answer if method == "POST" else {})
        return RESTResponse(HTTPResponse(content, status=200, headers={"Content-Type": "application/json"}))


def _public(part: Any) -> Any:
    """Return a part of a body as it may be printed."""
    if isinstance(part, dict):
        return {name: _public(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_public(value) for value in part]
    return public_uri(part) if isinstance(part, str) else part
