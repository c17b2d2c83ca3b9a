"""Make the demo's base model, data set and tasks: ``python -m demo.make_demo`` from the root of the repository.

Everything comes from the facts in ``demo/sources`` and one seed; nothing is fetched. What it makes is committed, so
this is needed only after a change. It leaves in ``demo/``:

    data/elements.jsonl   the conversations to learn
    data/calibration.jsonl   conversations that stand for what the base model must keep
    tasks/                four lm-eval tasks: three of what the base model knows, one of what it is to learn
    model/                the base model, its tokenizer and chat template
    measured.json         how the base model does on the tasks, and what it took
"""

import logging
import time
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer

from demo.conversations import calibration_conversations, element_conversations
from demo.measurement import measure
from demo.pretraining import PretrainingConfig, pretrain
from demo.task_files import write_json_lines, write_tasks
from demo.tokenizer import train_tokenizer
from osft.workspace import write_json

logger = logging.getLogger(__name__)

DEMO = Path(__file__).parent
SEED = 20260
# One, because sums in another order give another model, and the model is too small to gain much from more.
NUM_THREADS = 1


def make_demo(output: Annotated[Path, typer.Option(help="Folder to fill.")] = DEMO) -> None:
    """Make the demo's base model, data set and tasks."""
    torch.set_num_threads(NUM_THREADS)
    write_texts(output)
    training_seconds, num_parameters = write_model(output / "model")
    started = time.perf_counter()
    scores = measure(output / "model", output / "tasks", SEED)
    measured = {
        "seed": SEED,
        "num_parameters": num_parameters,
        "training_seconds": round(training_seconds),
        "evaluation_seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
        "num_threads": NUM_THREADS,
        "base_exact_match": scores,
    }
    write_json(output / "measured.json", measured)
    logger.info("base model: %s", scores)


def write_texts(output: Path) -> None:
    """Write the data set and the tasks."""
    for name, conversations in (("elements", element_conversations), ("calibration", calibration_conversations)):
        rows = [{"messages": messages} for messages in conversations(Random(SEED))]
        write_json_lines(output / "data" / f"{name}.jsonl", rows)
    write_tasks(output / "tasks")


def write_model(directory: Path) -> tuple[float, int]:
    """Train and save the tokenizer and the base model; return the seconds it took and the number of parameters."""
    started = time.perf_counter()
    tokenizer = train_tokenizer(SEED)
    model = pretrain(tokenizer, PretrainingConfig(seed=SEED))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return time.perf_counter() - started, model.num_parameters()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    typer.run(make_demo)
