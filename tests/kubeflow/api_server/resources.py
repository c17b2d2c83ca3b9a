"""What the API server keeps: objects with resource versions, the history that watches read, and selectors."""

import copy
import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.kubeflow.api_server.errors import ApiError, already_exists, expired, not_found

Object = dict[str, Any]
Key = tuple[str, str, str]
SET_TERM = re.compile(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)")
# The first version is not 1, so that nobody takes versions for counts.
FIRST_VERSION = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One line of the history."""

    version: int
    resource: str
    kind: str
    """``ADDED``, ``MODIFIED`` or ``DELETED``."""
    object: Object


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which objects of a resource a request is about."""

    resource: str
    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def takes(self, thing: Object) -> bool:
        """Return whether ``thing`` is one of them."""
        metadata = thing["metadata"]
        return (
            metadata.get("namespace", "") == self.namespace
            and all(_has_label(term, metadata.get("labels") or {}) for term in _terms(self.labels))
            and all(_has_field(term, thing) for term in filter(None, self.fields.split(",")))
        )


def now() -> str:
    """Return the time as Kubernetes writes it: whole seconds, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class Store:
    """Objects by resource, namespace and name; every change has the next version, and wakes who waits."""

    version: int = FIRST_VERSION
    oldest: int = FIRST_VERSION
    """Changes before this version are forgotten."""
    history: list[Change] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    _objects: dict[Key, Object] = field(default_factory=dict)

    def create(self, resource: str, thing: Object) -> Object:
        """Keep a new object; its name may be left to the server (``generateName``)."""
        thing = copy.deepcopy(thing)
        metadata = thing.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        key = (resource, metadata.get("namespace", ""), metadata["name"])
        with self.changed:
            if key in self._objects:
                raise already_exists(resource, metadata["name"])
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            return self._keep(key, thing, "ADDED")

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """Return a copy of the object."""
        with self.changed:
            return copy.deepcopy(self._find((resource, namespace, name)))

    def has(self, resource: str, namespace: str, name: str) -> bool:
        """Return whether the object is there."""
        with self.changed:
            return (resource, namespace, name) in self._objects

    def select(self, selection: Selection) -> list[Object]:
        """Return copies of the objects of a selection, by name."""
        with self.changed:
            of_resource = [thing for key, thing in sorted(self._objects.items()) if key[0] == selection.resource]
            return [copy.deepcopy(thing) for thing in of_resource if selection.takes(thing)]

    def update(self, resource: str, namespace: str, name: str, change: Callable[[Object], None]) -> Object:
        """Let ``change`` edit the object in place; what does not change it makes no version."""
        key = (resource, namespace, name)
        with self.changed:
            edited = copy.deepcopy(self._find(key))
            change(edited)
            if edited == self._objects[key]:
                return edited
            return self._keep(key, edited, "MODIFIED")

    def delete(self, resource: str, namespace: str, name: str) -> Object:
        """Remove the object."""
        key = (resource, namespace, name)
        with self.changed:
            removed = self._keep(key, copy.deepcopy(self._find(key)), "DELETED")
            del self._objects[key]
            return removed

    def forget_history(self) -> None:
        """Start a new window of versions, as an API server does that starts again."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()
            self.changed.notify_all()

    def watch(
        self, selection: Selection, since: int, timeout_seconds: float, is_open: Callable[[], bool]
    ) -> Iterator[tuple[str, Object]]:
        """Yield the changes after version ``since`` as they come.

        Raises:
            ApiError: 410, if the history no longer reaches back so far.
        """
        deadline = time.monotonic() + timeout_seconds
        while is_open() and time.monotonic() < deadline:
            with self.changed:
                if since < self.oldest:
                    raise expired(since, self.oldest)
                news = [change for change in self.history if change.version > since]
                if not news:
                    self.changed.wait(min(0.2, max(0.0, deadline - time.monotonic())))
            for change in news:
                since = change.version
                if change.resource == selection.resource and selection.takes(change.object):
                    yield change.kind, change.object

    def _find(self, key: Key) -> Object:
        if key not in self._objects:
            raise not_found(key[0], key[2])
        return self._objects[key]

    def _keep(self, key: Key, thing: Object, kind: str) -> Object:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._objects[key] = thing
        self.history.append(Change(version=self.version, resource=key[0], kind=kind, object=copy.deepcopy(thing)))
        self.changed.notify_all()
        return copy.deepcopy(thing)


def _terms(selector: str) -> list[str]:
    """Return the terms of a label selector; a comma inside parentheses separates values, not terms."""
    return [term.strip() for term in re.split(r",(?![^(]*\))", selector) if term.strip()]


def _has_label(term: str, labels: dict[str, str]) -> bool:
    if of_set := SET_TERM.fullmatch(term):
        name, operator, values = of_set.groups()
        return (labels.get(name) in [value.strip() for value in values.split(",")]) == (operator == "in")
    if "!=" in term:
        name, _, value = term.partition("!=")
        return labels.get(name) != value
    if "=" in term:
        name, _, value = term.replace("==", "=").partition("=")
        return labels.get(name) == value
    return term.removeprefix("!") not in labels if term.startswith("!") else term in labels


def _has_field(term: str, thing: Object) -> bool:
    path, operator, value = re.split(r"(!=|==?)", term, maxsplit=1)
    found: Any = thing
    for part in path.split("."):
        if part not in found and part not in ("phase", "nodeName", "uid", "fieldPath"):
            raise ApiError(400, "BadRequest", f"field label not supported: {path}")
        found = found.get(part, "")
    return (str(found) == value) == (operator != "!=")
