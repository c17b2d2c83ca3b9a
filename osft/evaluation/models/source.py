"""A model that is asked for, checked before hours are spent.

A folder is read as ``save_pretrained`` leaves it; a name on the Hub becomes the folder of its snapshot first (from the
local cache under ``HF_HUB_OFFLINE=1``), so that both are checked alike. Code that comes with a model is never run.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from osft.errors import EvaluationError, MissingPathError, one_line
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.completions import CompletionsClient
from osft.evaluation.models.weights import check_weight_files, check_weights, find_weight_files

SNAPSHOT_FILES = (
    "*.safetensors",
    "*.json",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
)
NOT_SNAPSHOT_FILES = ("*/*", "consolidated*.safetensors")
"""Sub-folders and ``consolidated*`` hold the same weights in the formats of other programs."""

SAMPLE = "One two.\n  1234 é don't"
"""What tokenizers split by rules beside the vocabulary: spaces, digits, letters with an accent, an apostrophe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model that was found to be whole, before its weights are loaded."""

    name: str
    """As the user gave it."""

    folder: Path | None
    """Where its files lie; None for a model behind a server."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary_size: int
    """Rows of the embedding, from the model's configuration; of a served model without one, tokens of the tokenizer."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer formats conversations."""
        return self.tokenizer.chat_template is not None


def find_model(name: str, config: EvaluationConfig) -> ModelSource:
    """Check that a model is whole, and load its tokenizer.

    Args:
        name: a folder, or a name on the Hub. For the backend ``openai`` the name by which the server knows the model,
            which is also where its tokenizer lies: a folder or a name on the Hub.
        config: the backend, and the server's address.

    Raises:
        MissingPathError: if there is neither a folder nor a model of that name.
        EvaluationError: if the folder lacks a part of the model, or it is one that cannot be evaluated; or if the
            server cannot be reached, does not know the model or gives no log-likelihoods; or if the backend is not
            installed.
    """
    if config.backend == "vllm" and find_spec("vllm") is None:
        raise EvaluationError(
            "backend vllm: the package vllm is not installed. Install it (pip install vllm), or use backend hf."
        )
    if config.backend == "openai":
        return _find_served_model(name, config)
    folder = _find_folder(name)
    _check_files(name, folder)
    model_config = _read_config(name, folder)
    check_weights(name, folder, model_config)
    return ModelSource(
        name=name,
        folder=folder,
        tokenizer=_read_tokenizer(name, folder),
        vocabulary_size=model_config.get_text_config().vocab_size,
    )


def check_same_vocabulary(base: ModelSource, tuned: ModelSource) -> None:
    """Refuse two models whose prompts would not be the same tokens.

    The token that ends an answer may differ: training on conversations often changes it.

    Raises:
        EvaluationError: if the sizes of the vocabularies or the tokens differ, or a text is split otherwise, or it does
            not begin with the same token.
    """
    for what, of_base, of_tuned in (
        ("model's vocabulary", base.vocabulary_size, tuned.vocabulary_size),
        ("tokenizer", len(base.tokenizer), len(tuned.tokenizer)),
    ):
        if of_base != of_tuned:
            raise EvaluationError(
                f"the {what} has {of_base} entries in base '{base.name}' and {of_tuned} in tuned '{tuned.name}'. "
                "Compare a model with the one it was trained from."
            )
    if base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab():
        raise EvaluationError(
            f"the tokenizers of base '{base.name}' and tuned '{tuned.name}' give the same tokens other ids. "
            "Save the base model's tokenizer with the tuned model."
        )
    if base.tokenizer.encode(SAMPLE) != tuned.tokenizer.encode(SAMPLE):
        raise EvaluationError(
            f"the tokenizers of base '{base.name}' and tuned '{tuned.name}' make other tokens of one text: one puts a "
            "token in front of it, or splits it by other rules. Save the base model's tokenizer with the tuned model."
        )
    prefixes = [_prefix_token(one.tokenizer) for one in (base, tuned)]
    if prefixes[0] != prefixes[1]:
        raise EvaluationError(
            f"the token in front of a text without context (bos_token, or else eos_token) is {prefixes[0]} for base "
            f"'{base.name}' and {prefixes[1]} for tuned '{tuned.name}'. Save the base model's tokenizer with the tuned "
            "model."
        )


def _prefix_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what lm-eval puts in front of a text that has no context."""
    return str(tokenizer.eos_token if tokenizer.bos_token_id is None else tokenizer.bos_token)


def _find_folder(name: str) -> Path:
    """Return the folder of a model, fetched from the Hub if ``name`` is no folder."""
    if (folder := Path(name)).is_dir():
        return folder
    if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise MissingPathError(f"model '{name}': the folder does not exist.")
    try:
        return Path(
            snapshot_download(name, allow_patterns=list(SNAPSHOT_FILES), ignore_patterns=list(NOT_SNAPSHOT_FILES))
        )
    except GatedRepoError as error:
        raise EvaluationError(f"model '{name}': the Hub asks for access. Accept its terms and set HF_TOKEN.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise MissingPathError(
            f"model '{name}' is neither a folder nor a model in the local cache or on the Hub ({one_line(error)})."
        ) from error


def _check_files(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise EvaluationError(f"model '{name}': there is no config.json. Give the folder that save_pretrained wrote.")
    check_weight_files(name, folder)


def weight_bytes(source: ModelSource) -> int:
    """Return the size of a model's weights as they are stored."""
    if source.folder is None:
        raise EvaluationError(f"model '{source.name}' has no folder.")
    return sum(file.stat().st_size for file in find_weight_files(source.name, source.folder))


def _read_config(name: str, folder: Path) -> PreTrainedConfig:
    try:
        # None would ask on the terminal whether to run the model's own code.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise EvaluationError(
            f"model '{name}': transformers does not know this model ({one_line(error)}). Code that comes with a model "
            "is never run; a newer transformers may know it."
        ) from error
    except StrictDataclassError as error:
        raise EvaluationError(
            f"model '{name}': config.json describes no model ({one_line(error)}). Save the model with save_pretrained."
        ) from error
    if config.is_encoder_decoder:
        raise EvaluationError(
            f"model '{name}' ({config.model_type}) is an encoder-decoder. Give a causal language model."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise EvaluationError(f"model '{name}' ({config.model_type}) is no causal language model. Give one.")
    return config


def _read_tokenizer(name: str, place: Path | str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise EvaluationError(
            f"model '{name}': the tokenizer cannot be loaded ({type(error).__name__}: {one_line(error)}). "
            "Save it beside the weights (save_pretrained)."
        ) from error
    if not tokenizer.encode(SAMPLE, add_special_tokens=False):
        # Where its files are not there, transformers 5 makes one without a vocabulary.
        raise EvaluationError(f"model '{name}': there is no tokenizer. Save it beside the weights (save_pretrained).")
    if tokenizer.eos_token_id is None:
        raise EvaluationError(
            f"model '{name}': the tokenizer has no eos_token, so that no answer would end and no batch could be padded."
            " Set eos_token in tokenizer_config.json."
        )
    return tokenizer


def _find_served_model(name: str, config: EvaluationConfig) -> ModelSource:
    """Load the tokenizer of a model behind a server, and ask the server one token."""
    tokenizer = _read_tokenizer(name, name)
    client = CompletionsClient(str(config.base_url))
    client.check_scores(name, tokenizer.encode("one two", add_special_tokens=False))
    try:
        size = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config().vocab_size
    except (OSError, ValueError, KeyError, StrictDataclassError):
        # A server's model needs only a tokenizer here.
        size = len(tokenizer)
    return ModelSource(name=name, folder=None, tokenizer=tokenizer, vocabulary_size=size)
