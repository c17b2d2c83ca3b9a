"""A model that transformers runs in this process: lm-eval's own class, watched.

What is set otherwise than lm-eval 0.4.13 does:

- Decoding takes nothing from the model's ``generation_config.json`` but the end tokens. A repetition penalty or a
  temperature that is saved with one of two models and not with the other would be measured as forgetting. (vLLM under
  lm-eval does the same.)
- An answer ends at every token that ends a text or a turn (:func:`~osft.evaluation.models.watched.end_token_ids`).
- Batch size ``"auto"`` is found here and handed on as a number: lm-eval prints what it finds to standard output.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from osft.errors import EvaluationError
from osft.evaluation.models.batch_sizes import BatchSizes
from osft.evaluation.models.placement import CPU
from osft.evaluation.models.source import ModelSource
from osft.evaluation.models.watched import Progress, TokenRequest, WatchedModel, end_token_ids, special_token_ids
from osft.evaluation.models.weights import check_nothing_missing, without_bars

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class NanWatch(LogitsProcessor):
    """Remember on the device whether any score was NaN, without waiting for the device at each token."""

    def __init__(self, device: torch.device) -> None:
        self.seen = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return ``scores`` (float, [batch, vocabulary]) unchanged."""
        self.seen |= scores.isnan().any()
        return scores


class HuggingFaceModel(WatchedModel, HFLM):
    """A model in this process, on one device or spread over all GPUs."""

    _model: Any

    def __init__(
        self,
        source: ModelSource,
        *,
        label: str,
        batch_size: int | str,
        device: str = CPU,
        is_spread: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Load the weights: in their own dtype on a GPU, in float32 on a CPU.

        Args:
            source: a model that was found whole.
            label: what log lines and errors call it: ``base`` or ``tuned``.
            batch_size: sequences in one forward pass, or ``"auto"``.
            device: torch's name of it.
            is_spread: whether the layers are spread over all GPUs.
            progress: where sequences are counted, if not in a log.

        Raises:
            EvaluationError: if the checkpoint lacks weights, or has them in another shape.
        """
        self._watch(source, label=label, progress=progress)
        with without_bars():
            super().__init__(
                pretrained=str(source.folder),
                tokenizer=source.tokenizer,
                backend="causal",
                device=device,
                dtype=dtype_on(device),
                batch_size=1 if batch_size == "auto" else batch_size,
                parallelize=is_spread,
                trust_remote_code=False,
                use_safetensors=True,
            )
        self._batch_sizes = BatchSizes(None if device == CPU else self._try_batch) if batch_size == "auto" else None
        self._decode_plainly()

    @property
    def longest_request(self) -> int:
        """Tokens of the longest request: the last one is only predicted, not read."""
        return self.max_length + 1

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the text that is generated for each request."""
        if self._batch_sizes:
            contexts = self.tokenizer([request.args[0] for request in requests])["input_ids"]
            settings = [normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
            self._fit_batches(max(map(len, contexts)) + max(one["max_gen_toks"] for one in settings))
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Return ``function(model, *args)``, where ``model`` is transformers' own."""
        return function(self.model, *args)

    def close(self) -> None:
        """Let go of the weights."""
        self._model = None

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        # transformers returns a pair then, which lm-eval keeps as it is. Weights of another shape are refused below,
        # by name.
        super()._create_model(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        self._model, loading = self._model
        check_nothing_missing(self._source.name, loading)
        # lm-eval ties weights once more (0.4.13). Loading has tied all there is to tie: an output layer that the
        # checkpoint stores beside tied embeddings, and that differs from them, is the model's own and would be lost.
        self._model.tie_weights = lambda *_, **__: None

    def _decode_plainly(self) -> None:
        own = self.model.generation_config.eos_token_id
        own = [] if own is None else [own] if isinstance(own, int) else own
        self._end_ids = sorted({*own, *end_token_ids(self.tokenizer)})
        self.model.generation_config = GenerationConfig(
            eos_token_id=self._end_ids, pad_token_id=self.tokenizer.pad_token_id
        )

    def _score_unshared(self, requests: list[TokenRequest]) -> list[tuple[float, bool]]:
        # lm-eval shares logits between requests that are equal but for where the answer begins, and then
        # sums the shorter answer over the wrong positions (0.4.13). Rows seldom share, so nothing is lost.
        self.logits_cache = False
        try:
            return super()._score_unshared(requests)
        finally:
            self.logits_cache = True

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        del disable_tqdm, override_bs
        if not requests:
            return []
        longest = max(len(context) + len(answer) for _, context, answer in requests) - 1
        self._fit_batches(longest)
        with self._naming_memory(longest):
            answers = super()._loglikelihood_tokens(requests, disable_tqdm=True)
        return self._check_finite(answers)

    def _answer_tokens(self, contexts: list[list[int]], *, max_tokens: int, until: list[str]) -> list[str]:
        self._fit_batches(len(contexts[0]) + max_tokens)
        ends = sorted({*self._end_ids, *special_token_ids(self.tokenizer, until)})
        texts: list[str] = []
        for start in range(0, len(contexts), self.batch_size):
            batch = contexts[start : start + self.batch_size]
            width = len(batch[0])
            # Left of a shorter context stands padding that attention does not see.
            padding = [width - len(ids) for ids in batch]
            rows = [[self.tokenizer.pad_token_id] * missing + ids for missing, ids in zip(padding, batch, strict=True)]
            mask = [[0] * missing + [1] * (width - missing) for missing in padding]
            tokens = self._model_generate(
                context=torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_length=width + max_tokens,
                stop=until,
                do_sample=False,
                eos_token_id=ends,
            )
            texts += [self._decode_answer(row[width:], ends) for row in tokens.tolist()]
        return texts

    def _decode_answer(self, ids: list[int], ends: list[int]) -> str:
        """Return the text before the first of the tokens ``ends``."""
        length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        return self.tok_decode(ids[:length], skip_special_tokens=True)

    def _model_call(
        self, inps: torch.Tensor, *args: torch.Tensor | None, **kwargs: torch.Tensor | None
    ) -> torch.Tensor:
        logits = super()._model_call(inps, *args, **kwargs)
        self._progress.advance(inps.shape[0])
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        watch = NanWatch(context.device)
        with self._naming_memory(context.shape[1]):
            tokens = super()._model_generate(context, *args, logits_processor=LogitsProcessorList([watch]), **kwargs)
        if watch.seen:
            raise EvaluationError(f"the {self._label} model gave NaN while generating. {self._broken()}")
        self._progress.advance(context.shape[0])
        return tokens

    def _fit_batches(self, num_tokens: int) -> None:
        """Take the batch size that fits sequences of this length, if it is for us to choose."""
        if self._batch_sizes:
            self.batch_size_per_gpu = self._batch_sizes.size_for(min(num_tokens, self.max_length))

    def _try_batch(self, num_sequences: int, num_tokens: int) -> None:
        """Run what a scoring pass runs, at its largest."""
        tokens = torch.ones((num_sequences, min(num_tokens, self.max_length)), dtype=torch.long, device=self.device)
        try:
            super()._model_call(tokens).log_softmax(dim=-1)
        finally:
            # Pieces of a batch that did not fit would stand in the way of the next one.
            torch.cuda.empty_cache()

    @contextmanager
    def _naming_memory(self, num_tokens: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"the {self._label} model ran out of memory on {self.device} with batches of {self.batch_size} "
                f"sequences of up to {num_tokens} tokens. Give a smaller batch_size, or 'auto'."
            ) from error


def dtype_on(device: str) -> str:
    """Return in which dtype a model runs: ``"auto"`` is the one that it is stored in."""
    return "float32" if device == CPU else "auto"
