"""The model under evaluation: its folder checked before hours are spent, its numbers checked as they come.

lm-eval's Hugging Face model does the scoring. What is added: requests that carry token ids, log lines instead
of progress bars (a step's output is a log file), and no number from a broken model. A NaN logit makes argmax
return some token, and lm-eval would score it like any other answer.
"""

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from osft.errors import EvaluationError, MissingPathError

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Time between two log lines of progress."""

WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model that was found to be whole, before its weights are loaded."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary_size: int
    """Rows of the embedding, from the model's configuration."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer formats conversations."""
        return self.tokenizer.chat_template is not None


def find_model(name: str) -> ModelSource:
    """Check a model's folder and load its tokenizer.

    Args:
        name: a folder, or a name on the Hub (read from the local cache under ``HF_HUB_OFFLINE=1``).

    Raises:
        MissingPathError: if there is neither a folder nor a model of that name.
        EvaluationError: if the folder has no configuration, weights in safetensors format, or tokenizer.
    """
    if (folder := Path(name)).is_dir():
        _check_folder(folder)
    elif folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise MissingPathError(f"model '{name}': the folder does not exist.")
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise MissingPathError(
            f"model '{name}' is neither a folder nor a model in the local cache or on the Hub."
        ) from error
    except ValueError as error:
        raise EvaluationError(f"model '{name}': config.json is not understood ({error}).") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EvaluationError(f"model '{name}': the tokenizer cannot be loaded ({type(error).__name__}).") from error
    return ModelSource(name=name, tokenizer=tokenizer, vocabulary_size=config.get_text_config().vocab_size)


def check_same_vocabulary(base: ModelSource, tuned: ModelSource) -> None:
    """Refuse two models that do not share a vocabulary: their prompts would not be the same tokens.

    Raises:
        EvaluationError: if the sizes or the tokens differ.
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


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise EvaluationError(f"model '{folder}': there is no config.json. Give the folder that save_pretrained wrote.")
    weights = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise EvaluationError(f"model '{folder}': there are no weights ({' or '.join(WEIGHT_NAMES)}).")
    if weights.suffix == ".json":
        shards = set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise EvaluationError(
                f"model '{folder}': {len(missing)} of {len(shards)} weight files are missing ({missing[0]})."
            )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise EvaluationError(f"model '{folder}': there is no tokenizer. Save it beside the weights (save_pretrained).")


class NanWatch(LogitsProcessor):
    """Remember on the device whether any score was NaN, without waiting for the device at each token."""

    def __init__(self, device: torch.device) -> None:
        self.seen = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return ``scores`` (float, [batch, vocabulary]) unchanged."""
        self.seen |= scores.isnan().any()
        return scores


class EvaluatedModel(HFLM):
    """lm-eval's Hugging Face model, with token requests, log lines and finite numbers only."""

    def __init__(self, source: ModelSource, *, label: str, batch_size: int | str) -> None:
        """Load the weights: in their own dtype on a GPU, in float32 on a CPU.

        Args:
            source: a model that was found whole.
            label: what log lines and errors call it: ``base`` or ``tuned``.
            batch_size: sequences in one forward pass, or ``"auto"``.
        """
        self._label = label
        self._num_done = self._num_requests = 0
        self._next_report_seconds = 0.0
        on_gpu = torch.cuda.is_available()
        super().__init__(
            pretrained=source.name,
            tokenizer=source.tokenizer,
            backend="causal",
            device="cuda" if on_gpu else "cpu",
            dtype="auto" if on_gpu else "float32",
            batch_size=batch_size,
            trust_remote_code=False,
            use_safetensors=True,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return ``(log-likelihood, is greedy)`` of each request's continuation."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each request's whole text."""
        self._start("rolling log-likelihood", len(requests))
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the text that is generated for each request."""
        self._start("generation", len(requests))
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_of_tokens(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return ``(log-likelihood, is greedy)`` of requests ``(context, answer, context ids, answer ids)``.

        Raises:
            EvaluationError: if a request is longer than the model's window: cut off, it would be another question.
        """
        tokens = [((one.args[0], one.args[1]), one.args[2], one.args[3]) for one in requests]
        for (_, context, answer), request in zip(tokens, requests, strict=True):
            if len(context) + len(answer) > self.max_length + 1:
                raise EvaluationError(
                    f"task {request.task_name}, row {request.doc['row']}: {len(context) + len(answer)} tokens, but the "
                    f"{self._label} model reads at most {self.max_length}. Process the data with a smaller max_seq_len."
                )
        # lm-eval shares logits between requests that are equal but for where the answer begins, and then
        # sums the shorter answer over the wrong positions (0.4.13). Rows seldom share, so nothing is lost.
        self.logits_cache = False
        try:
            return self._loglikelihood_tokens(tokens, disable_tqdm=True)
        finally:
            self.logits_cache = True

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        self._start("log-likelihood", len(requests))
        answers = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        for loglikelihood, _ in answers:
            if not math.isfinite(loglikelihood):
                raise EvaluationError(
                    f"the {self._label} model gave the log-likelihood {loglikelihood}. {self._broken()}"
                )
        return answers

    def _model_call(
        self, inps: torch.Tensor, *args: torch.Tensor | None, **kwargs: torch.Tensor | None
    ) -> torch.Tensor:
        logits = super()._model_call(inps, *args, **kwargs)
        self._advance(inps.shape[0])
        return logits

    def _model_generate(self, context: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        watch = NanWatch(context.device)
        tokens = super()._model_generate(context, *args, logits_processor=LogitsProcessorList([watch]), **kwargs)
        if watch.seen:
            raise EvaluationError(f"the {self._label} model gave NaN while generating. {self._broken()}")
        self._advance(context.shape[0])
        return tokens

    def _broken(self) -> str:
        return (
            f"Its weights ({self.pretrained}) are broken or overflow its dtype; train again with a lower learning rate."
        )

    def _start(self, what: str, num_requests: int) -> None:
        logger.info("%s: %d requests of %s", self._label, num_requests, what)
        self._num_done, self._num_requests = 0, num_requests
        self._next_report_seconds = time.monotonic() + PROGRESS_SECONDS

    def _advance(self, num_sequences: int) -> None:
        """Count sequences that went through the model; requests that share one count as it."""
        self._num_done += num_sequences
        if (now := time.monotonic()) >= self._next_report_seconds:
            logger.info("%s: %d of at most %d requests done", self._label, self._num_done, self._num_requests)
            self._next_report_seconds = now + PROGRESS_SECONDS
