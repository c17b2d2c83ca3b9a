"""What a finished run leaves behind, to be read without the libraries that trained it."""

from dataclasses import dataclass
from pathlib import Path

from osft.errors import TrainingError
from osft.workspace import read_json

METRICS_NAME = "metrics.jsonl"
RESULT_NAME = "training.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a finished run left behind."""

    final_checkpoint: Path | None
    """Folder of the final model in Hugging Face format; ``None`` with ``save_final_checkpoint=False``."""

    epoch_checkpoints: tuple[Path, ...]
    """Folders of the models after each epoch, with ``checkpoint_at_epoch=True``."""

    metrics_file: Path
    """One JSON line a step."""

    loss_chart: Path
    """The same as a picture, one self-contained HTML file."""

    steps: int
    """Optimizer steps taken."""

    samples: int
    """Rows trained on in each epoch."""

    first_loss: float
    """Loss of the first step, before it was taken."""

    final_loss: float
    """Loss of the last step, before it was taken."""

    trainable_parameters: int
    """Values that AdamW moved."""

    seconds: float
    """Wall time from the start of the loading to the last file."""

    @classmethod
    def load(cls, directory: Path | str) -> "TrainingResult":
        """Read the result that a run left in its ``ckpt_output_dir``; the folder may have been moved since.

        Raises:
            TrainingError: if no finished run is there.
        """
        root = Path(directory)
        try:
            fields = read_json(root / RESULT_NAME)["result"]
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f"{root}: holds no finished training run ({error}). Train there first.") from error
        final = fields.pop("final_checkpoint")
        return cls(
            final_checkpoint=root / final if final else None,
            epoch_checkpoints=tuple(root / name for name in fields.pop("epoch_checkpoints")),
            metrics_file=root / fields.pop("metrics_file"),
            loss_chart=root / fields.pop("loss_chart"),
            **fields,
        )
