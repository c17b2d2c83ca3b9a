"""What must be equal for a run to go on from a checkpoint, and what differs, in words.

That is every parameter that changes the trained weights, the base model and the training data, both by their bytes.
Where things lie, how many processes train and how often the state is saved may change.

The model is known by the sha256 of its weights and configuration, not by its path: weights that were replaced in
place would go on under coordinates of others, without an error. Reading them takes less time than loading them does,
and where they come from the Hub's cache, none: they are stored under their hash.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from osft.config import TrainingConfig
from osft.content_cache import content_key
from osft.errors import ConfigError, MissingPathError, one_line
from osft.file_hashes import file_sha256s
from osft.subspace.inputs import text_file
from osft.subspace.memory.memory import memory_file
from osft.workspace import as_json, sha256_of_file

# Raise it when a checkpoint of an earlier version would be read wrongly.
FORMAT_VERSION = 1
WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
FREE_TO_CHANGE = (
    "model_path", "data_path", "protect_inputs_of", "subspace_memory", "calibration", "ckpt_output_dir",
    "data_output_dir", "decomposition_cache",
    "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints", "resume",
    "step_timeout_minutes", "nproc_per_node", "nnodes", "node_rank", "rdzv_id", "rdzv_endpoint",
)  # fmt: skip
"""Parameters that say where something is, or how the run is carried out; what the paths hold counts by content."""
MEMORY_PARAMETERS = ("remember", "base_memory")
"""Parameters that count in a run with a memory alone."""

MODEL_KEY = "base model"
DATA_KEY = "training data"
PROTECTED_TEXT_KEY = "text of protect_inputs_of"
VERSION_KEY = "version of the checkpoints"
MEMORY_KEY = "memory of subspace_memory"
CALIBRATION_KEY = "text of calibration"
CONTENT_KEYS = (MODEL_KEY, DATA_KEY, PROTECTED_TEXT_KEY, MEMORY_KEY, CALIBRATION_KEY)


def run_identity(config: TrainingConfig, train_data: Path) -> dict[str, Any]:
    """Return what determines the result of a run, as JSON.

    Args:
        config: all of the run's parameters.
        train_data: the token ids that it trains on.

    Raises:
        EvaluationError: if a file of the model cannot be read.
        MissingPathError: if the model is neither a folder nor one that the Hub or its cache has.
    """
    left_out = (*FREE_TO_CHANGE, *MEMORY_PARAMETERS)
    parameters = {name: value for name, value in asdict(config).items() if name not in left_out}
    contents = {
        MODEL_KEY: _weights_hash(config),
        DATA_KEY: sha256_of_file(train_data),
        PROTECTED_TEXT_KEY: _text_hash(config.protect_inputs_of),
        VERSION_KEY: FORMAT_VERSION,
    }
    return as_json({**parameters, **contents, **_memory_identity(config)})


def _memory_identity(config: TrainingConfig) -> dict[str, Any]:
    """Return what a run with a memory has besides; nothing for one without, which is what it was before there were."""
    if not config.remember and config.subspace_memory is None:
        return {}
    memory = config.subspace_memory
    return {
        **{name: getattr(config, name) for name in MEMORY_PARAMETERS},
        MEMORY_KEY: sha256_of_file(memory_file(memory)) if memory else None,
        CALIBRATION_KEY: _text_hash(config.calibration),
    }


def _text_hash(path: str | None) -> str | None:
    return sha256_of_file(text_file(Path(path))) if path else None


def _weights_hash(config: TrainingConfig) -> str:
    folder = Path(config.model_path)
    if not folder.is_dir():
        folder = _from_hub(config.model_path)
    paths = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
    hashes = file_sha256s(paths, memo=None)
    return content_key({path.name: digest for path, digest in zip(paths, hashes, strict=True)})


def _from_hub(model_path: str) -> Path:
    try:
        return Path(snapshot_download(model_path, allow_patterns=list(WEIGHT_FILES)))
    except (OSError, ValueError) as error:
        raise MissingPathError(
            f"model_path '{model_path}' is neither a folder nor a reachable Hugging Face model: {one_line(error)}."
        ) from error


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return in words what of ``asked`` is not as it was ``saved``: ``learning_rate was 1e-05, is 2e-05``."""
    changed = [name for name in {**saved, **asked} if saved.get(name) != asked.get(name)]
    return [_difference(name, saved.get(name), asked.get(name)) for name in changed]


def require_same(saved: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    """Refuse to go on from, or to write over, what another configuration left.

    Raises:
        ConfigError: with every difference in words.
    """
    if changed := differences(saved, asked):
        raise ConfigError(
            f"{what} is of another configuration: {'; '.join(changed)}. Ask for the same, give another "
            "ckpt_output_dir, or give resume='never' to remove it and start anew."
        )


def _difference(name: str, was: Any, now: Any) -> str:
    # A hash would tell a reader nothing.
    return f"the {name} has other contents" if name in CONTENT_KEYS else f"{name} was {was!r}, is {now!r}"
