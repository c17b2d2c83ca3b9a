"""What a run is told of its registry in the first step, and registering from there."""

import sys
from pathlib import Path
from typing import Any

import pytest

from osft.errors import ConfigError
from osft.registration.promoted import check_registry, register_promoted
from osft.workspace import Workspace

ADDRESS = "https://registry.apps.example.com"


def test_an_address_and_a_claim_are_enough() -> None:
    check_registry(ADDRESS, location="", claim="my-claim")


def test_without_an_address_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mr_openapi", None)

    check_registry("", location="gs://bucket", claim="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "registry:8080"}, "model registry 'registry:8080' is not an address"),
        ({"location": "gs://bucket"}, "location 'gs://bucket' is neither a volume nor a bucket"),
        ({"claim": ""}, "location 'pvc://' is neither a volume nor a bucket"),
    ],
)
def test_what_no_version_could_be_registered_with_is_refused(changes: dict[str, str], message: str) -> None:
    given = {"address": ADDRESS, "location": "", "claim": "my-claim"} | changes

    with pytest.raises(ConfigError, match=message):
        check_registry(**given)


def test_a_client_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mr_openapi", None)
    monkeypatch.delitem(sys.modules, "osft.registration.register", raising=False)
    version: dict[str, Any] = {"model_name": "demo", "version": "v0001"}

    for check in (
        lambda: check_registry(ADDRESS, location="", claim="c"),
        lambda: register_promoted(
            Workspace(tmp_path), **version, address=ADDRESS, location="", claim="c", environment={}
        ),
    ):
        with pytest.raises(ConfigError, match=r"client is not installed. Install it with pip install '.*\[registry\]'"):
            check()
