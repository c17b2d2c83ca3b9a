"""What a pipeline server keeps and answers: the part of the KFP v2beta1 API that a client of schedules meets.

It follows the server of kubeflow/pipelines: which fields a body may have (those of kfp_server_api's models), which
names are unique, how lists are filtered and paged, whole numbers of 64 bits as texts, the two forms of its errors.
"""

import base64
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import kfp_server_api
import orjson
import yaml

Thing = dict[str, Any]
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 200
GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 503: 14}
# Keys that a list can be filtered by.
FILTER_KEYS = ("display_name", "name", "created_at", "description")
MODELS = {
    "pipelines": kfp_server_api.V2beta1Pipeline,
    "experiments": kfp_server_api.V2beta1Experiment,
    "runs": kfp_server_api.V2beta1Run,
    "recurringruns": kfp_server_api.V2beta1RecurringRun,
}
IDS = {
    "pipelines": "pipeline_id",
    "versions": "pipeline_version_id",
    "experiments": "experiment_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}
# What the answer of a list calls its items.
ITEMS = {"recurringruns": "recurringRuns", "versions": "pipeline_versions"}
VERB = re.compile(r"(?P<id>[^:]+):(?P<verb>enable|disable)")


class Refusal(Exception):  # noqa: N818 a status, not always an error
    """An answer other than 200."""

    def __init__(self, code: int, message: str, *, is_upload: bool = False) -> None:
        self.code = code
        self.body = (
            {"error_message": message, "error_details": message}
            if is_upload
            else {"error": message, "code": GRPC_CODES.get(code, 2), "message": message, "details": []}
        )
        super().__init__(message)


@dataclass(kw_only=True)
class Api:
    """One server's things, in the order that they were made."""

    is_multi_user: bool = False
    is_old: bool = False
    """Whether it has only the API v1beta1."""

    things: dict[str, list[Thing]] = field(default_factory=lambda: {kind: [] for kind in IDS})
    files: dict[str, bytes] = field(default_factory=dict)
    """Of each version its upload."""

    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    """What time it is. The server itself keeps whole seconds."""

    make_id: Callable[[], str] = field(default=lambda: str(uuid4()))
    """What the next thing is known by."""

    lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Thing:
        """Return the answer to a request.

        Raises:
            Refusal: if it is not 200.
        """
        with self.lock:
            if not path.startswith("/apis/v2beta1/") or self.is_old:
                raise Refusal(404, "Not Found")
            parts = path.removeprefix("/apis/v2beta1/").split("/")
            return self._route(parts, method)(parts, query, body)

    def enabled(self) -> list[Thing]:
        """Return the recurring runs that are in force."""
        return [one for one in self.things["recurringruns"] if one["status"] == "ENABLED"]

    def _route(self, parts: list[str], method: str) -> Callable[..., Thing]:
        if parts == ["healthz"]:
            return lambda *_: {"multi_user": self.is_multi_user, "tag_name": "2.15.0"}
        if method == "POST" and parts == ["pipelines", "upload_version"]:
            return self._upload
        if method == "GET" and parts[0] == "pipelines" and parts[2:] == ["versions"]:
            return self._list_versions
        if parts[0] in MODELS and len(parts) == 1:
            return self._create if method == "POST" else self._list
        if method == "POST" and parts[0] == "recurringruns" and VERB.fullmatch(parts[-1]):
            return self._switch
        raise Refusal(404, "Not Found")

    def _create(self, parts: list[str], _: Mapping[str, str], body: bytes) -> Thing:
        kind = parts[0]
        thing = orjson.loads(body)
        check_fields(thing, MODELS[kind])
        if not thing.get("display_name"):
            raise Refusal(400, "InvalidInputError: the name is empty")
        self._check_namespace(kind, thing)
        if kind in ("pipelines", "experiments") and self._named(kind, thing["display_name"]):
            raise Refusal(409, f"Already exist error: the name {thing['display_name']} already exists")
        if kind in ("runs", "recurringruns"):
            self._check_run(thing)
        if kind == "recurringruns":
            thing = as_recurring_run(thing)
        return self._keep(kind, thing)

    def _upload(self, _: list[str], query: Mapping[str, str], body: bytes) -> Thing:
        pipeline_id, name = query.get("pipelineid", ""), query.get("name", "")
        if not any(one["pipeline_id"] == pipeline_id for one in self.things["pipelines"]):
            raise Refusal(400, "Failed to create a pipeline version", is_upload=True)
        try:
            specification = next(iter(yaml.safe_load_all(body)))
        except yaml.YAMLError as error:
            raise Refusal(400, "Failed to read a pipeline spec file", is_upload=True) from error
        if "sdkVersion" not in specification:
            raise Refusal(400, "Failed to create a pipeline version: unknown template format", is_upload=True)
        of_it = [one for one in self._named("versions", name) if one["pipeline_id"] == pipeline_id]
        if of_it:
            raise Refusal(409, "Failed to create a pipeline version", is_upload=True)
        version = self._keep("versions", {"pipeline_id": pipeline_id, "display_name": name, "name": name})
        self.files[version["pipeline_version_id"]] = body
        return version

    def _list(self, parts: list[str], query: Mapping[str, str], _: bytes) -> Thing:
        if self.is_multi_user and parts[0] != "pipelines" and not query.get("namespace"):
            raise Refusal(400, "Invalid input error: a namespace is required in multi-user mode")
        return list_page(parts[0], self.things[parts[0]], query)

    def _list_versions(self, parts: list[str], query: Mapping[str, str], _: bytes) -> Thing:
        of_it = [one for one in self.things["versions"] if one["pipeline_id"] == parts[1]]
        return list_page("versions", of_it, query)

    def _switch(self, parts: list[str], *_: Any) -> Thing:
        match = VERB.fullmatch(parts[-1])
        thing = next(
            (one for one in self.things["recurringruns"] if match and one["recurring_run_id"] == match["id"]), None
        )
        if not match or not thing:
            raise Refusal(404, "ResourceNotFoundError: Job not found")
        thing["status"] = {"enable": "ENABLED", "disable": "DISABLED"}[match["verb"]]
        return {}

    def _check_namespace(self, kind: str, thing: Thing) -> None:
        if kind == "experiments" and bool(thing.get("namespace")) != self.is_multi_user:
            raise Refusal(400, "Invalid input error: the namespace does not fit the mode of the server")

    def _check_run(self, thing: Thing) -> None:
        if not any(one["experiment_id"] == thing.get("experiment_id") for one in self.things["experiments"]):
            raise Refusal(404, "ResourceNotFoundError: Experiment not found")
        reference = thing.get("pipeline_version_reference", {})
        if not any(one.items() >= reference.items() for one in self.things["versions"] if reference):
            raise Refusal(400, "Failed to fetch a template with an invalid pipeline spec manifest")

    def _named(self, kind: str, name: str) -> list[Thing]:
        return [one for one in self.things[kind] if one["display_name"] == name]

    def _keep(self, kind: str, thing: Thing) -> Thing:
        made = {**thing, IDS[kind]: self.make_id(), "created_at": self.clock().isoformat().replace("+00:00", "Z")}
        self.things[kind].append(made)
        return made


def as_recurring_run(thing: Thing) -> Thing:
    """Return a recurring run as the server keeps it.

    Raises:
        Refusal: if it would not be accepted.
    """
    if not 1 <= int(thing.get("max_concurrency", 0)) <= 10:
        raise Refusal(400, "Max concurrency of a recurring run must be at least 1 and at most 10")
    # The last of the six fields may be missing: what has five is read, and misread.
    cron = thing["trigger"]["cron_schedule"]["cron"]
    if len(cron.split()) not in (5, 6) and not cron.startswith("@"):
        raise Refusal(400, "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron)")
    mode = thing.pop("mode", "MODE_UNSPECIFIED")
    status = "ENABLED" if mode == "ENABLE" else "DISABLED"
    return {**thing, "status": status, "max_concurrency": str(thing["max_concurrency"])}


def check_fields(thing: Thing, model: Any) -> None:
    """Check that a body has no field that the API does not know, nor one of another type.

    Raises:
        Refusal: if it has.
    """
    known = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
    for name, value in thing.items():
        if name not in known:
            raise Refusal(400, f'proto: (line 1:2): unknown field "{name}"')
        if known[name].startswith(("V2beta1", "RecurringRun")):
            inner = getattr(kfp_server_api, known[name])
            if isinstance(value, dict):
                check_fields(value, inner)
            elif value not in getattr(inner, "allowable_values", ()):
                raise Refusal(400, f"proto: (line 1:2): invalid value for {name}")


def list_page(kind: str, things: list[Thing], query: Mapping[str, str]) -> Thing:
    """Return a page of a list.

    Raises:
        Refusal: if the filter is by a field that has none.
    """
    for predicate in orjson.loads(query.get("filter") or "{}").get("predicates", []):
        if predicate["key"] not in FILTER_KEYS:
            raise Refusal(400, f"no support for filtering on unrecognized field {predicate['key']}")
        if predicate["operation"] not in ("EQUALS", 1):
            raise Refusal(400, f"this test's server knows no {predicate['operation']}")
        wanted = predicate.get("stringValue", predicate.get("string_value"))
        things = [one for one in things if one.get(predicate["key"]) == wanted]
    if query.get("experiment_id"):
        things = [one for one in things if one["experiment_id"] == query["experiment_id"]]
    if query.get("sort_by", "").endswith(" desc"):
        things = things[::-1]
    start = int(base64.b64decode(query["page_token"])) if query.get("page_token") else 0
    end = start + min(int(query.get("page_size") or DEFAULT_PAGE_SIZE), MAX_PAGE_SIZE)
    page: Thing = {ITEMS.get(kind, kind): things[start:end], "total_size": len(things)}
    if end < len(things):
        page["next_page_token"] = base64.b64encode(str(end).encode()).decode()
    # What is empty is left out.
    return {name: value for name, value in page.items() if value}
