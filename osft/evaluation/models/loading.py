"""A model that is loaded when a task first needs it: one whose results are all known costs nothing."""

import gc
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from osft.errors import EvaluationError, one_line
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.identity import model_fingerprint
from osft.evaluation.models.endpoint import EndpointModel
from osft.evaluation.models.hugging_face import HuggingFaceModel, dtype_on
from osft.evaluation.models.placement import CPU, choose_placement, visible_gpu_memory_bytes
from osft.evaluation.models.replicas import ReplicatedModel
from osft.evaluation.models.source import ModelSource, weight_bytes
from osft.evaluation.models.watched import WatchedModel

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Loaded = WatchedModel | ReplicatedModel
"""A language model of lm-eval that also takes requests of token ids."""


class LazyModel:
    """A model under evaluation, and what is known of it before it is loaded. To be closed after use."""

    def __init__(self, source: ModelSource, config: EvaluationConfig, *, label: str, memo: Path | None = None) -> None:
        """Remember what to load.

        Args:
            source: a model that was found whole.
            config: backend and batch size.
            label: what log lines and errors call it: ``base`` or ``tuned``.
            memo: a folder where the hashes of weight files are remembered; None hashes them each time.
        """
        self.source = source
        self.label = label
        self._config = config
        self._memo = memo

    @cached_property
    def fingerprint(self) -> str | None:
        """A hash of the model's files; None for one behind a server, whose files are out of sight."""
        return None if self.source.folder is None else model_fingerprint(self.source.folder, memo=self._memo)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What decides the numbers beside the model and the task, as JSON.

        The number of GPUs is not part of it: copies give the same numbers, up to how batches are put together. Only
        answers that are drawn (``do_sample``) are others on another number of GPUs; they are kept like the rest, being
        as good a draw.
        """
        backend = self._config.backend
        on_gpu = torch.cuda.is_available()
        return {
            "backend": backend,
            # Of a server it is not known; its results are not kept.
            "backend_version": importlib.metadata.version("vllm" if backend == "vllm" else "lm-eval"),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
            "dtype": dtype_on("cuda" if on_gpu else CPU),
            "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
            "batch_size": self._config.batch_size,
        }

    @cached_property
    def lm(self) -> Loaded:
        """The model for lm-eval, loaded now if it was not.

        Raises:
            EvaluationError: if it cannot be loaded.
        """
        logger.info("%s: loading %s", self.label, self.source.name)
        try:
            return self._load()
        except EvaluationError:
            raise
        except (RuntimeError, OSError, ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
            raise EvaluationError(
                f"the {self.label} model '{self.source.name}' cannot be loaded: {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error

    def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Return ``function(model, *args)``, where ``model`` is transformers', in the process that holds it.

        Args:
            function: at the top of a module, as it may go to another process, like what it takes and returns.
            args: what it takes beside the model.

        Raises:
            EvaluationError: if another backend than ``hf`` runs the model.
        """
        if not isinstance(self.lm, HuggingFaceModel | ReplicatedModel):
            raise EvaluationError(f"backend '{self._config.backend}' does not show the model itself. Use backend hf.")
        return self.lm.run(function, *args)

    def close(self) -> None:
        """Free the memory; the model is loaded anew when it is used again."""
        if "lm" in self.__dict__:
            self.lm.close()
            del self.__dict__["lm"]
            gc.collect()
            torch.cuda.empty_cache()

    def __enter__(self) -> "LazyModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self) -> Loaded:
        if self._config.backend == "openai":
            return EndpointModel(self.source, self._config, label=self.label)
        if self._config.backend == "vllm":
            # The import needs vLLM, which few have.
            from osft.evaluation.models.vllm import VllmModel

            return VllmModel(self.source, label=self.label, seed=self._config.seed)
        return self._load_here()

    def _load_here(self) -> Loaded:
        """Load the model with transformers: once, or a copy on each GPU."""
        placement = choose_placement(weight_bytes(self.source), visible_gpu_memory_bytes())
        if len(placement.devices) > 1:
            return ReplicatedModel(
                self.source, label=self.label, batch_size=self._config.batch_size, devices=placement.devices
            )
        return HuggingFaceModel(
            self.source,
            label=self.label,
            batch_size=self._config.batch_size,
            device=placement.devices[0],
            is_spread=placement.is_spread,
        )
