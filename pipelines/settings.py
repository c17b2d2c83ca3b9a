"""Parameters of a pipeline as ``name=value`` texts, the way they come in on a command line."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from google.protobuf import json_format
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

from osft.errors import ConfigError
from osft.sweep.ratio_runs import checked_ratios

# What a pipeline declares, in words and as the types of its JSON values.
JSON_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "NUMBER_INTEGER": ("whole number", (int,)),
    "NUMBER_DOUBLE": ("number", (int, float)),
    "BOOLEAN": ("true or false", (bool,)),
    "LIST": ("list", (list,)),
    "STRUCT": ("JSON object", (dict,)),
}


def parse_settings(settings: Sequence[str], pipeline: BaseComponent) -> dict[str, Any]:
    """Return parameters of ``pipeline`` from ``name=value`` texts, each in the type that it declares.

    Raises:
        ConfigError: if a name is unknown, a value is not of its type, or a sweep cannot be made of its ratios.
    """
    declared = _declared_by(pipeline)
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set '{setting}' has no value. Give name=value.")
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=3) or sorted(declared)
            raise ConfigError(f"--set '{name}': there is no parameter of this name. Did you mean {', '.join(near)}?")
        kind = ParameterType.ParameterTypeEnum.Name(declared[name].parameter_type)
        parsed[name] = _parse_value(name, text, kind)
    if "sweep_ratios" in parsed:
        # In the run they are looked at only where the first ratio begins, hours later.
        checked_ratios(parsed["sweep_ratios"])
    return parsed


def require_all(arguments: Mapping[str, Any], pipeline: BaseComponent) -> None:
    """Check that every parameter without a default has a value.

    Raises:
        ConfigError: if one has none.
    """
    for name, parameter in _declared_by(pipeline).items():
        if name not in arguments and not parameter.is_optional:
            raise ConfigError(f"the parameter {name} has no value. Give --set {name}=...")


def with_defaults(arguments: Mapping[str, Any], pipeline: BaseComponent) -> dict[str, Any]:
    """Return ``arguments``, and the default of every parameter that is not among them."""
    declared = _declared_by(pipeline)
    defaults = {
        name: json_format.MessageToDict(parameter.default_value)
        for name, parameter in declared.items()
        if parameter.HasField("default_value")
    }
    return {**defaults, **arguments}


def _declared_by(pipeline: BaseComponent) -> Mapping[str, Any]:
    parameters: Mapping[str, Any] = pipeline.pipeline_spec.root.input_definitions.parameters
    return parameters


def _parse_value(name: str, text: str, kind: str) -> Any:
    if kind == "STRING":
        return text
    word, types = JSON_TYPES[kind]
    try:
        value = orjson.loads(text.lower() if kind == "BOOLEAN" else text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"--set {name}={text} is not a {word}.") from error
    # In Python a truth value is a whole number too.
    if not isinstance(value, types) or isinstance(value, bool) != (kind == "BOOLEAN"):
        raise ConfigError(f"--set {name}={text} is not a {word}.")
    return value
