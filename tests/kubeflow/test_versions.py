"""Which field of a TrainJob gives its pods the workspace, by what the API server says."""

from collections.abc import Mapping
from typing import Any

import pytest

from osft.errors import ConfigError
from osft.kubeflow.versions import OverridesField, field_in_crd, field_kept


def make_crd(*fields: str, version: str = "v1alpha1", served: bool = True) -> dict[str, Any]:
    properties = {"spec": {"properties": {name: {"type": "array"} for name in ("trainer", *fields)}}}
    return {
        "metadata": {"name": "trainjobs.trainer.kubeflow.org"},
        "spec": {
            "versions": [{"name": version, "served": served, "schema": {"openAPIV3Schema": {"properties": properties}}}]
        },
    }


@pytest.mark.parametrize("field", OverridesField)
def test_the_field_is_the_one_in_the_schema(field: OverridesField) -> None:
    assert field_in_crd(make_crd(field.value), "v1alpha1") is field


def test_of_two_fields_the_newer_one_is_taken() -> None:
    crd = make_crd("podSpecOverrides", "podTemplateOverrides")

    assert field_in_crd(crd, "v1alpha1") is OverridesField.POD_TEMPLATE_OVERRIDES


@pytest.mark.parametrize(
    "crd", [make_crd(), make_crd("runtimePatches", version="v2"), make_crd("runtimePatches", served=False)]
)
def test_a_schema_without_any_of_them_is_refused(crd: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="trainjobs.trainer.kubeflow.org, version v1alpha1, knows none of"):
        field_in_crd(crd, "v1alpha1")


@pytest.mark.parametrize("known", OverridesField)
def test_without_the_schema_the_field_is_the_one_that_a_dry_run_keeps(known: OverridesField) -> None:
    def try_manifest(field: OverridesField) -> Mapping[str, Any]:
        return {"spec": {"trainer": {}, **({field.value: []} if field is known else {})}}

    assert field_kept(try_manifest) is known


def test_a_server_that_keeps_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="the API server knows none of runtimePatches, podTemplateOverrides"):
        field_kept(lambda field: {"spec": {}})
