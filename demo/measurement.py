"""Measure a model on the demo's tasks with lm-eval, as the pipeline does."""

from pathlib import Path

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from demo.task_files import RETENTION_TASKS, TARGET_TASK, load_task

BATCH_SIZE = 128


def measure(model: Path, tasks: Path, seed: int) -> dict[str, float]:
    """Return the share of questions that the model answers exactly, 0 to 1, for each task.

    Args:
        model: folder of a model and its tokenizer.
        tasks: folder of the task files.
        seed: for what lm-eval draws, which is nothing in these tasks.
    """
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=BATCH_SIZE),
        tasks=[load_task(tasks / f"{task}.yaml") for task in (*RETENTION_TASKS, TARGET_TASK)],
        # Without it lm-eval first reads the thousands of task files that it ships.
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return {task: scores["exact_match,none"] for task, scores in results["results"].items()}
