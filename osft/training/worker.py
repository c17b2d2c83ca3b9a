"""The process that torchrun starts: reads a configuration file and trains.

python -m torch.distributed.run --nproc-per-node 2 --module osft.training.worker CONFIG.json
"""

import logging
import os
import sys
from pathlib import Path

import orjson

from osft.config import TrainingConfig
from osft.logs import configure_logging
from osft.training.loop import train


def read_config(path: Path) -> TrainingConfig:
    """Return the configuration that :func:`osft.api.osft` wrote to ``path``."""
    fields = orjson.loads(path.read_bytes())
    if fields["target_patterns"] is not None:
        fields["target_patterns"] = tuple(fields["target_patterns"])
    return TrainingConfig(**fields)


def main() -> None:
    """Train as ``sys.argv[1]`` says; information is logged by the first process alone, warnings by all."""
    first = os.environ.get("RANK", "0") == "0"
    configure_logging(logging.INFO if first else logging.WARNING)
    train(read_config(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
