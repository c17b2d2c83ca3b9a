"""Loading the model to train and writing it back in Hugging Face format, safetensors only."""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from osft.errors import MissingPathError, TrainingError, one_line
from osft.subspace.attach import subspace_layers
from osft.workspace import replace_directory

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt",
    "*.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


SAFETENSORS_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in the precision it is trained in, and the precision that each weight is stored in."""

    model: PreTrainedModel
    stored_dtypes: Mapping[str, torch.dtype]
    """By name of the weight, floating weights only."""

    @property
    def commonest_dtype(self) -> torch.dtype:
        """What most weights are stored in, and so what the configuration names."""
        return Counter(self.stored_dtypes.values()).most_common(1)[0][0]


def load_model(model_path: str, device: torch.device) -> LoadedModel:
    """Load a causal language model to train on ``device``.

    A model stored in bfloat16 throughout stays bfloat16 on a GPU. Anything else is computed in float32, which holds
    the stored values exactly, so that what is not trained is written back as it was.

    Raises:
        MissingPathError: if ``model_path`` is neither a folder nor a model that the Hub or its cache has.
        TrainingError: if the folder does not hold a whole causal language model with safetensors weights.
    """
    try:
        folder = Path(model_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_path, allow_patterns=list(HUB_FILES)))
        stored_dtypes = _read_dtypes(folder)
        all_bfloat16 = set(stored_dtypes.values()) == {torch.bfloat16}
        dtype = torch.bfloat16 if device.type == "cuda" and all_bfloat16 else torch.float32
        flash = dtype == torch.bfloat16 and is_flash_attn_2_available()
        # Typed as if it returned a model alone.
        model_and_loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="flash_attention_2" if flash else "sdpa",
            output_loading_info=True,
        )
    except HFValidationError as error:
        raise MissingPathError(f"model_path '{model_path}' is neither a folder nor a Hugging Face id.") from error
    except (OSError, SafetensorError) as error:
        reason = one_line(error)
        if Path(model_path).is_dir():
            raise TrainingError(f"model_path '{model_path}' cannot be loaded: {reason}.") from error
        raise MissingPathError(
            f"model_path '{model_path}' is neither a folder nor a reachable Hugging Face model: {reason}."
        ) from error
    except ValueError as error:
        raise TrainingError(f"model_path '{model_path}' is not a causal language model: {one_line(error)}.") from error
    model, loading = model_and_loading
    # transformers makes up at random what it does not find.
    if absent := sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]):
        raise TrainingError(f"model_path '{model_path}' lacks weights of its own model: {', '.join(absent[:5])}.")
    return LoadedModel(model=model.to(device), stored_dtypes=stored_dtypes)


def _read_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the dtype of every floating weight from the headers of the safetensors files."""
    dtypes: dict[str, torch.dtype] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 it is no dict
                kind = weights.get_slice(name).get_dtype()
                if kind in SAFETENSORS_DTYPES:
                    dtypes[name] = SAFETENSORS_DTYPES[kind]
    if not dtypes:
        raise TrainingError(f"{folder}: holds no safetensors weights. Save the model with save_pretrained.")
    return dtypes


def save_model(loaded: LoadedModel, model_path: str, target: Path) -> None:
    """Write the model with its merged weights, and the base model's tokenizer, to the folder ``target``.

    The folder appears under its name when it is whole. The model goes on training unchanged.

    Args:
        loaded: a model with attached :class:`SubspaceLinear` layers.
        model_path: where it was loaded from; the tokenizer's files are copied from there, byte for byte.
        target: the folder to write, replaced if it exists.
    """
    model = loaded.model
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.save_pretrained(partial, state_dict=_plain_state(loaded))
    # save_pretrained writes down the dtype that the model is computed in.
    model.config.dtype = loaded.commonest_dtype
    model.config.save_pretrained(partial)
    copy_tokenizer(model_path, partial)
    for file in partial.iterdir():
        # safetensors makes its files private; a pod under another user id of the same group must read them.
        file.chmod(0o664)
    replace_directory(partial, target)
    logger.info("saved %s", target)


def _plain_state(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the weights as a model without our layers has them, each in its stored dtype; tied ones stay tied."""
    cores = {f"{name}.core" for name, _ in subspace_layers(loaded.model)}
    # For a name that the files do not have: a tied weight is stored under one of its names alone.
    fallback = loaded.commonest_dtype
    converted: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    state = {}
    for name, tensor in loaded.model.state_dict().items():
        if name not in cores:
            identity = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if identity not in converted:
                floating = tensor.is_floating_point()
                converted[identity] = tensor.to(loaded.stored_dtypes.get(name, fallback)) if floating else tensor
            state[name] = converted[identity]
    return state


def copy_tokenizer(model_path: str, target: Path) -> None:
    """Put the tokenizer of ``model_path`` into ``target``; a local folder's files are copied as they are."""
    source = Path(model_path)
    if source.is_dir():
        for pattern in TOKENIZER_FILES:
            for file in source.glob(pattern):
                shutil.copy2(file, target / file.name)
    else:
        AutoTokenizer.from_pretrained(model_path).save_pretrained(target)
