"""The weights of a model, held against its configuration before hours are spent.

transformers fills weights that a checkpoint lacks with random numbers and only warns. The names and shapes in the
safetensors headers are therefore held against the model that the configuration describes; no weight is read for it.
What transformers makes up or leaves out as it loads is looked at again then.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from osft.errors import EvaluationError, one_line

logger = logging.getLogger(__name__)

WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json")
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5")
"""Weights in formats that can run code as they are read, or that transformers does not read as they are."""

HARMLESS = re.compile(
    r"inv_freq$|(attn|attention)\.(masked_)?bias$|(^|\.)(mtp|nextn)|vision|visual|audio|image|multi_modal"
)
"""Names of weights that a causal language model does without: buffers of older versions of transformers, layers that
predict several tokens at once (transformers' own lists name those with a number), and what reads pictures or sound."""


def find_weight_files(name: str, folder: Path) -> list[Path]:
    """Return the safetensors files of a model; every one exists.

    Args:
        name: of the model, for the error.
        folder: where its files lie.

    Raises:
        EvaluationError: if there are none, or some are missing.
    """
    weights = next((folder / file for file in WEIGHT_NAMES if (folder / file).is_file()), None)
    if weights is None:
        other = next((file.name for pattern in OTHER_WEIGHTS for file in sorted(folder.glob(pattern))), None)
        found = f"; {other} is in another format" if other else ""
        raise EvaluationError(
            f"model '{name}': there are no weights ({' or '.join(WEIGHT_NAMES)}) in {folder}{found}. "
            "Save the model with save_pretrained, or download it whole."
        )
    if weights.suffix != ".json":
        return [weights]
    try:
        shards = sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise EvaluationError(f"model '{name}': {weights.name} is no index of weights. Copy it again.") from error
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise EvaluationError(
            f"model '{name}': {len(missing)} of {len(shards)} weight files are missing ({missing[0]})."
        )
    return [folder / shard for shard in shards]


def check_weight_files(name: str, folder: Path) -> None:
    """Refuse weight files that are missing, or were cut off on their way.

    Raises:
        EvaluationError: names the file.
    """
    for file in find_weight_files(name, folder):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise EvaluationError(
                f"model '{name}': {file.name} is cut off or no safetensors file ({one_line(error)}). Copy it again."
            ) from error


def check_weights(name: str, folder: Path, config: PreTrainedConfig) -> None:
    """Hold the headers of the weights against the model, which exists without memory ("meta") only.

    Weights that the model has no place for are warned of. Quantized weights have other names than the model's, which
    their libraries know, and a few models cannot exist without memory; both are checked as they load.

    Raises:
        EvaluationError: if the checkpoint lacks weights, or has them in another shape.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if model_class.config_class == config.sub_configs.get("text_config"):
        # Of a model that also reads pictures, AutoModelForCausalLM takes the part for text, and its configuration.
        config = config.get_text_config()
    shapes = _read_shapes(find_weight_files(name, folder))
    try:
        with _silently():
            _, loading = model_class.from_pretrained(
                None,
                config=config,
                state_dict=shapes,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        if not isinstance(error, RuntimeError | ValueError) or "meta" in str(error):
            logger.info("model '%s' cannot be made without memory: %s: %s", name, type(error).__name__, one_line(error))
            return
        raise EvaluationError(
            f"model '{name}': the weights do not fit config.json: names or shapes differ ({one_line(error)}). "
            "Save both again with save_pretrained."
        ) from error
    check_nothing_missing(name, loading)
    _warn_of_extra(name, loading)


def check_nothing_missing(name: str, loading: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers made up weights.

    Args:
        name: for the error.
        loading: what ``from_pretrained(..., ignore_mismatched_sizes=True, output_loading_info=True)`` returns beside
            the model.

    Raises:
        EvaluationError: if the checkpoint lacks weights, or has them in another shape.
    """
    if mismatched := sorted(loading["mismatched_keys"]):
        key, stored, expected = mismatched[0]
        raise EvaluationError(
            f"model '{name}': {len(mismatched)} weights have another shape than config.json says "
            f"({key}: {list(stored)}, not {list(expected)}). Save both again with save_pretrained."
        )
    if missing := sorted(loading["missing_keys"]):
        raise EvaluationError(
            f"model '{name}': {len(missing)} weights of the model are not in its safetensors files ({missing[0]}). "
            "Save the whole model with save_pretrained."
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of the log while a model is read."""
    were_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            transformers_logging.enable_progress_bar()


def _read_shapes(files: list[Path]) -> dict[str, torch.Tensor]:
    """Return a tensor without memory for each weight in the files."""
    shapes: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (no mapping)
                shapes[key] = torch.empty(weights.get_slice(key).get_shape(), device="meta")
    return shapes


@contextmanager
def _silently() -> Iterator[None]:
    """Keep transformers quiet: what is wrong is said in our own words, on one line."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        with without_bars():
            yield
    finally:
        transformers_logging.set_verbosity(level)


def _warn_of_extra(name: str, loading: Mapping[str, Any]) -> None:
    """Say that weights are left out: with a layer too few in config.json it would be another model."""
    if extra := sorted(key for key in loading["unexpected_keys"] if not HARMLESS.search(key)):
        logger.warning(
            "model '%s': %d weights in its files are not used, because config.json describes a model without them "
            "(%s). Check that config.json is this checkpoint's own.",
            name,
            len(extra),
            extra[0],
        )
