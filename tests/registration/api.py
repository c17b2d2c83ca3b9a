"""What a model registry keeps and answers: the part of its REST API that registering a version meets.

It follows the server of kubeflow/model-registry: registered models and versions share one sequence of ids, names are
unique where the server's database says so, bodies have the fields of the client's models and no others (an artifact's
other fields are dropped: the server takes it apart by its type first, and not strictly), whole numbers have 32 bits. A
registry that serves ``v1`` serves ``v1alpha3`` too; one that does not answers as those before 2026: errors are plain
texts, and a second artifact of one name is a failure (500) and not a conflict. Those before March 2025 do not know
where a model is from.
"""

import re
import threading
from dataclasses import dataclass, field
from typing import Any

import orjson
from mr_openapi import Artifact, MetadataValue, ModelVersionCreate, RegisteredModelCreate

Thing = dict[str, Any]
BASE = "/api/model_registry/"
ARTIFACTS = re.compile(r"model_versions/(?P<id>\d+)/artifacts")
INT32 = range(-(2**31), 2**31)


class Refusal(Exception):  # noqa: N818 a status, not always an error
    """An answer other than 200 and 201."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


@dataclass(kw_only=True)
class Api:
    """One registry's things, in the order that they were made."""

    serves: tuple[str, ...] = ("v1", "v1alpha3")
    knows_sources: bool = True
    models: list[Thing] = field(default_factory=list)
    versions: list[Thing] = field(default_factory=list)
    artifacts: list[Thing] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_old(self) -> bool:
        return "v1" not in self.serves

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Return status and JSON of the answer to a request.

        Raises:
            Refusal: with the answer, if it is another one.
        """
        version, _, rest = path.removeprefix(BASE).partition("/")
        if not path.startswith(BASE) or version not in self.serves:
            raise LookupError(path)
        with self._lock:
            if method == "GET":
                return 200, self._get(rest, query)
            return 201, self._create(rest, orjson.loads(body))

    def _get(self, rest: str, query: dict[str, str]) -> Thing:
        name, parent = query.get("name"), query.get("parentResourceId")
        if rest == "registered_model":
            return _only([one for one in self.models if one["name"] == name], "registered model")
        if rest == "model_version":
            own = [one for one in self.versions if (one["name"], one["registeredModelId"]) == (name, parent)]
            return _only(own, "model version")
        if rest == "model_artifact":
            own = [one for one in self.artifacts if (one["name"], one["versionId"]) == (name, parent)]
            return {key: value for key, value in _only(own, "model artifact").items() if key != "versionId"}
        raise LookupError(rest)

    def _create(self, rest: str, body: Thing) -> Thing:
        if rest == "registered_models":
            _check(body, RegisteredModelCreate)
            if any(one["name"] == body["name"] for one in self.models):
                raise Refusal(409, f"registered model with name {body['name']} already exists: conflict")
            return self._keep(self.models, body)
        if rest == "model_versions":
            _check(body, ModelVersionCreate)
            if all(one["id"] != body["registeredModelId"] for one in self.models):
                raise Refusal(404, "no registered model found: not found")
            if any(_identity(one) == _identity(body) for one in self.versions):
                raise Refusal(409, f"model version with name {body['name']} already exists: conflict")
            return self._keep(self.versions, body)
        if match := ARTIFACTS.fullmatch(rest):
            return self._create_artifact(match["id"], body)
        raise LookupError(rest)

    def _create_artifact(self, version_id: str, body: Thing) -> Thing:
        known = _fields(type(Artifact.from_dict(body).actual_instance))
        body = {key: value for key, value in body.items() if key in known and self._knows(key)}
        if all(one["id"] != version_id for one in self.versions):
            raise Refusal(404, "no model version found: not found")
        if any((one["name"], one["versionId"]) == (body["name"], version_id) for one in self.artifacts):
            raise Refusal(500 if self.is_old else 409, f"model artifact with name {body['name']} already exists")
        made = self._keep(self.artifacts, body)
        made["versionId"] = version_id
        return {key: value for key, value in made.items() if key != "versionId"}

    def _knows(self, field_name: str) -> bool:
        return self.knows_sources or not field_name.startswith("modelSource")

    def _keep(self, things: list[Thing], body: Thing) -> Thing:
        contexts = len(self.models) + len(self.versions)
        number = len(self.artifacts) if things is self.artifacts else contexts
        made = {**body, "id": str(number + 1), "createTimeSinceEpoch": "0", "lastUpdateTimeSinceEpoch": "0"}
        things.append(made)
        return made


def _identity(version: Thing) -> tuple[str, str]:
    return version["name"], version["registeredModelId"]


def _only(things: list[Thing], what: str) -> Thing:
    if len(things) != 1:
        raise Refusal(404, f"no {what}s found: not found")
    return things[0]


def _check(body: Thing, model: Any) -> None:
    if unknown := sorted(body.keys() - _fields(model)):
        raise Refusal(400, f'json: unknown field "{unknown[0]}"')
    for name, value in body.get("customProperties", {}).items():
        typed = MetadataValue.from_dict(value).actual_instance
        if int(getattr(typed, "int_value", 0)) not in INT32:
            raise Refusal(400, f"unable to convert {name}: value out of range: bad request")


def _fields(model: Any) -> set[str]:
    return {one.alias or name for name, one in model.model_fields.items()}
