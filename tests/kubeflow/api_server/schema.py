"""The CRD of TrainJobs in four versions of Kubeflow Trainer, and what an API server does with it.

The schemas come from the models of the packages kubeflow-trainer-api, each in a folder of its own and read by a process
of its own, since all are called the same. What those models leave out and the published CRDs have is added here:
defaults, the keys of lists, the few rules, and that the metadata inside a template has five fields.
"""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson

PACKAGES = Path(__file__).parents[3] / "build" / "trainer-api"
VERSIONS = {"2.0": "2.0.1", "2.1": "2.1.0", "2.2": "2.2.1", "2.3": "2.3.0"}
READ_MODELS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
json.dump(TrainerV1alpha1TrainJob.model_json_schema(by_alias=True), sys.stdout)
"""
INT_OR_STRING = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
QUANTITY = r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+(\.\d*)?)?"
SPECIAL = {
    "IoK8sApimachineryPkgApiResourceQuantity": {**INT_OR_STRING, "pattern": f"^({QUANTITY})$"},
    "IoK8sApimachineryPkgUtilIntstrIntOrString": INT_OR_STRING,
}
EMBEDDED_METADATA = ("annotations", "finalizers", "labels", "name", "namespace")
# The API server knows by itself what metadata has.
METADATA = {"type": "object"}
DEFAULTS: dict[tuple[str, ...], Any] = {
    ("managedBy",): "trainer.kubeflow.org/trainjob-controller",
    ("suspend",): False,
    ("runtimeRef", "apiGroup"): "trainer.kubeflow.org",
    ("runtimeRef", "kind"): "ClusterTrainingRuntime",
}
LIST_KEYS = {
    "runtimePatches": "manager",
    **dict.fromkeys(("containers", "initContainers", "env", "volumes", "volumeMounts", "replicatedJobs"), "name"),
}
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
PYTHON_TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}

Schema = dict[str, Any]
Cause = dict[str, str]


@cache
def train_job_schema(version: str) -> Schema:
    """Return the ``openAPIV3Schema`` of TrainJobs of Trainer ``version``, e.g. ``"2.1"``."""
    folder = PACKAGES / VERSIONS[version]
    if not folder.is_dir():
        package = f"kubeflow-trainer-api=={VERSIONS[version]}"
        raise FileNotFoundError(f"{folder} does not exist. Run: pip install --no-deps --target {folder} {package}")
    reading = [sys.executable, "-c", READ_MODELS, str(folder)]
    models = orjson.loads(subprocess.run(reading, stdout=subprocess.PIPE, check=True).stdout)
    schema = _structural(models, models["$defs"], name="")
    properties = schema["properties"]
    properties["metadata"] = dict(METADATA)
    for path, value in DEFAULTS.items():
        field = properties["spec"]
        for part in path:
            field = field["properties"][part]
        field["default"] = value
    if "activeDeadlineSeconds" in properties["spec"]["properties"]:
        properties["spec"]["properties"]["activeDeadlineSeconds"]["minimum"] = 1
    return schema


def custom_resource_definition(version: str) -> dict[str, Any]:
    """Return the CRD as the API server stores it."""
    schema = train_job_schema(version)
    served = {"name": "v1alpha1", "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "trainjobs.trainer.kubeflow.org"},
        "spec": {
            "group": "trainer.kubeflow.org",
            "names": {"kind": "TrainJob", "listKind": "TrainJobList", "plural": "trainjobs", "singular": "trainjob"},
            "scope": "Namespaced",
            "versions": [{**served, "schema": {"openAPIV3Schema": schema}}],
        },
        "status": {
            "acceptedNames": {"kind": "TrainJob", "plural": "trainjobs"},
            "conditions": [],
            "storedVersions": ["v1alpha1"],
        },
    }


def unknown_fields(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Yield the path of every field of ``value`` that ``schema`` lacks; pruning drops them."""
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from unknown_fields(item, schema["items"], f"{path}[{index}]")
    elif isinstance(value, dict) and schema.get("type") == "object" and schema != METADATA:
        for name, item in value.items():
            field = schema.get("additionalProperties") or schema.get("properties", {}).get(name)
            inner = f"{path}.{name}".lstrip(".")
            yield from [inner] if field is None else unknown_fields(item, field, inner)


def admit(job: dict[str, Any], schema: Schema) -> tuple[dict[str, Any], list[Cause]]:
    """Return ``job`` without the fields that ``schema`` lacks and with its defaults, and what is wrong with it."""
    admitted = {"metadata": job.get("metadata", {})}
    for name, field in schema["properties"].items():
        if name != "metadata" and name in job:
            admitted[name] = _pruned(job[name], field)
    _fill_defaults(admitted.get("spec", {}), schema["properties"]["spec"])
    causes = list(_wrong(admitted.get("spec"), schema["properties"]["spec"], "spec"))
    name = admitted["metadata"].get("name", "")
    if not NAME.fullmatch(name):
        causes.append(_cause("FieldValueInvalid", "metadata.name", f"{name!r} is not an RFC 1035 label"))
    return admitted, causes


def _structural(node: Schema, definitions: Schema, name: str) -> Schema:
    """Return a schema of pydantic as Kubernetes writes it: no references, no nulls."""
    if "$ref" in node:
        target = node["$ref"].rpartition("/")[2]
        if target in SPECIAL:
            return copy.deepcopy(SPECIAL[target])
        schema = _structural(definitions[target], definitions, name)
        if target.endswith("ObjectMeta"):
            schema["properties"] = {key: schema["properties"][key] for key in EMBEDDED_METADATA}
        return schema
    if "anyOf" in node:
        (sole,) = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        return _structural(sole, definitions, name)
    schema = {key: node[key] for key in ("type", "required", "format") if key in node}
    if "properties" in node:
        schema["properties"] = {key: _structural(value, definitions, key) for key, value in node["properties"].items()}
    if "items" in node:
        schema["items"] = _structural(node["items"], definitions, "")
        if name in LIST_KEYS:
            schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [LIST_KEYS[name]]}
    if isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = _structural(node["additionalProperties"], definitions, "")
    return schema


def _pruned(value: Any, schema: Schema) -> Any:
    if isinstance(value, list) and "items" in schema:
        return [_pruned(item, schema["items"]) for item in value]
    if not isinstance(value, dict) or schema.get("type") != "object":
        return value
    if "additionalProperties" in schema:
        return {key: _pruned(item, schema["additionalProperties"]) for key, item in value.items()}
    fields = schema.get("properties", {})
    return {key: _pruned(item, fields[key]) for key, item in value.items() if key in fields}


def _fill_defaults(value: Any, schema: Schema) -> None:
    if not isinstance(value, dict):
        return
    for name, field in schema.get("properties", {}).items():
        if "default" in field:
            value.setdefault(name, field["default"])
        elif name in value:
            _fill_defaults(value[name], field)


def _wrong(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield _wrong_type(path, value, "integer or string")
        elif not re.fullmatch(schema.get("pattern", ".*"), str(value)):
            yield _cause("FieldValueInvalid", path, f"Invalid value: {value!r} should match {schema['pattern']!r}")
        return
    expected = schema["type"]
    if not isinstance(value, PYTHON_TYPES[expected]) or (isinstance(value, bool) and expected != "boolean"):
        yield _wrong_type(path, value, expected)
    elif expected == "array":
        yield from _wrong_items(value, schema, path)
    elif expected == "object":
        for name in schema.get("required", []):
            if name not in value:
                yield _cause("FieldValueRequired", f"{path}.{name}", "Required value")
        for name, item in value.items():
            field = schema.get("additionalProperties") or schema["properties"][name]
            yield from _wrong(item, field, f"{path}.{name}")
    elif "minimum" in schema and value < schema["minimum"]:
        yield _cause("FieldValueInvalid", path, f"Invalid value: {value}: should be at least {schema['minimum']}")


def _wrong_items(items: list[Any], schema: Schema, path: str) -> Iterator[Cause]:
    for index, item in enumerate(items):
        yield from _wrong(item, schema["items"], f"{path}[{index}]")
    for key in schema.get("x-kubernetes-list-map-keys", []):
        names = [item.get(key) for item in items if isinstance(item, dict)]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield _cause("FieldValueDuplicate", f"{path}[{index}]", f'Duplicate value: {{"{key}":"{name}"}}')


def _wrong_type(path: str, value: Any, expected: str) -> Cause:
    found = "null" if value is None else next(name for name, kind in PYTHON_TYPES.items() if isinstance(value, kind))
    message = f'Invalid value: "{found}": {path} in body must be of type {expected}: "{found}"'
    return _cause("FieldValueTypeInvalid", path, message)


def _cause(reason: str, field: str, message: str) -> Cause:
    return {"reason": reason, "message": message, "field": field}
