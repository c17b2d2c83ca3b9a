"""Loading the model to train and writing it back in Hugging Face format, safetensors only."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from osft.errors import MissingPathError, TrainingError
from osft.subspace.attach import subspace_layers
from osft.workspace import replace_directory

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt",
    "*.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in the precision it is trained in, and the precision it is stored in."""

    model: PreTrainedModel
    stored_dtype: torch.dtype


def load_model(model_path: str, device: torch.device) -> LoadedModel:
    """Load a causal language model to train on ``device``.

    A bfloat16 model stays bfloat16 on a GPU. Anything else is computed in float32, which holds the stored values
    exactly, so that what is not trained is written back as it was.

    Raises:
        MissingPathError: if ``model_path`` is neither a folder nor a model that the Hub or its cache has.
        TrainingError: if the folder does not hold a causal language model with safetensors weights.
    """
    try:
        stored_dtype = _stored_dtype(AutoConfig.from_pretrained(model_path))
        dtype = torch.bfloat16 if device.type == "cuda" and stored_dtype == torch.bfloat16 else torch.float32
        flash = dtype == torch.bfloat16 and is_flash_attn_2_available()
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=dtype, use_safetensors=True, attn_implementation="flash_attention_2" if flash else "sdpa"
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        if Path(model_path).is_dir():
            raise TrainingError(f"model_path '{model_path}' cannot be loaded: {reason}") from error
        raise MissingPathError(
            f"model_path '{model_path}' is neither a folder nor a reachable Hugging Face model: {reason}"
        ) from error
    except ValueError as error:
        raise TrainingError(f"model_path '{model_path}' is not a causal language model: {error}") from error
    # The decorated method is typed as taking a model.
    model.to(device)  # type: ignore[arg-type]
    return LoadedModel(model=model, stored_dtype=stored_dtype)


def _stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    dtype = config.get_text_config().dtype or config.dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def save_model(loaded: LoadedModel, model_path: str, target: Path) -> None:
    """Write the model with its merged weights, and the base model's tokenizer, to the folder ``target``.

    The folder appears under its name when it is whole. The model goes on training unchanged.

    Args:
        loaded: a model with attached :class:`SubspaceLinear` layers; stored in its ``stored_dtype``.
        model_path: where it was loaded from; the tokenizer's files are copied from there, byte for byte.
        target: the folder to write, replaced if it exists.
    """
    model = loaded.model
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.save_pretrained(partial, state_dict=_plain_state(model, loaded.stored_dtype))
    # save_pretrained writes down the dtype that the model is computed in.
    model.config.dtype = loaded.stored_dtype
    model.config.save_pretrained(partial)
    copy_tokenizer(model_path, partial)
    replace_directory(partial, target)
    logger.info("saved %s", target)


def _plain_state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights as a model without our layers has them, in ``dtype``; tied tensors stay tied."""
    cores = {f"{name}.core" for name, _ in subspace_layers(model)}
    converted: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in cores:
            state[name] = converted.setdefault(tensor.data_ptr(), _convert(tensor, dtype))
    return state


def _convert(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def copy_tokenizer(model_path: str, target: Path) -> None:
    """Put the tokenizer of ``model_path`` into ``target``; a local folder's files are copied as they are."""
    source = Path(model_path)
    if source.is_dir():
        for pattern in TOKENIZER_FILES:
            for file in source.glob(pattern):
                shutil.copy2(file, target / file.name)
    else:
        AutoTokenizer.from_pretrained(model_path).save_pretrained(target)
