"""A model that vLLM runs: lm-eval's class, watched, with its layers split over all GPUs.

vLLM batches by itself: it is handed many requests at once, whatever ``batch_size`` says. Written against vLLM's
interface as lm-eval 0.4.13 uses it. The package is no dependency: it pins a torch of its own.
"""

from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.vllm_causallms import VLLM
from vllm import SamplingParams

from osft.evaluation.models.source import ModelSource
from osft.evaluation.models.watched import TokenRequest, WatchedModel, end_token_ids, special_token_ids

REQUESTS_AT_ONCE = 2048
"""Between two looks at the progress; vLLM has some hundred of them in flight."""


class VllmModel(WatchedModel, VLLM):
    """A model in vLLM's engine."""

    # The same prompts as transformers gets: lm-eval's own hands templates a setting more, enable_thinking (0.4.13).
    apply_chat_template = HFLM.apply_chat_template

    def __init__(self, source: ModelSource, *, label: str, seed: int) -> None:
        """Start the engine.

        Args:
            source: a model that was found whole.
            label: what log lines and errors call it: ``base`` or ``tuned``.
            seed: of sampling.
        """
        self._watch(source, label=label)
        super().__init__(
            pretrained=str(source.folder),
            dtype="auto",
            trust_remote_code=False,
            tensor_parallel_size=max(1, torch.cuda.device_count()),
            batch_size=REQUESTS_AT_ONCE,
            seed=seed,
        )

    @property
    def longest_request(self) -> int:
        """Tokens of the longest request; vLLM generates one more."""
        return self.max_length - 1

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the text that is generated for each request, up to the end of the text or the turn."""
        ends = {"stop_token_ids": end_token_ids(self.tokenizer)}
        requests = [replace(one, arguments=(one.args[0], one.args[1] | ends)) for one in requests]
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def close(self) -> None:
        """Let go of the engine, which ends its processes."""
        self.model = None

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        del disable_tqdm
        return self._check_finite(super()._loglikelihood_tokens(requests, disable_tqdm=True))

    def _answer_tokens(self, contexts: list[list[int]], *, max_tokens: int, until: list[str]) -> list[str]:
        ends = [*end_token_ids(self.tokenizer), *special_token_ids(self.tokenizer, until)]
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, stop=until, stop_token_ids=ends)
        texts: list[str] = []
        for start in range(0, len(contexts), REQUESTS_AT_ONCE):
            some = contexts[start : start + REQUESTS_AT_ONCE]
            outputs = self._model_generate(requests=some, generate=True, sampling_params=sampling)
            texts += [output.outputs[0].text for output in outputs]
        return texts

    def _model_generate(self, requests: list[list[int]], **kwargs: Any) -> Any:
        outputs = super()._model_generate(requests, **kwargs)
        self._progress.advance(len(requests))
        return outputs
