"""The pipeline's parameters for the embedded model and data: what ``make demo`` runs."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent

DEMO_PARAMETERS = {
    "data_uri": str(FOLDER / "data" / "elements.jsonl"),
    "model_base": str(FOLDER / "model"),
    "model_calibration": str(FOLDER / "data" / "calibration.jsonl"),
    "train_unfreeze_rank_ratio": 0.5,
    "train_learning_rate": 6e-3,
    "train_num_epochs": 20,
    "train_effective_batch_size": 16,
    "train_warmup_steps": 20,
    "train_max_tokens_per_gpu": 4096,
    "train_max_seq_len": 128,
    "eval_tasks": "country_code,country_capital,country_currency",
    "eval_target_tasks": "element_facts",
    "eval_include_path": str(FOLDER / "tasks"),
    "eval_batch_size": 128,
    "eval_gpus": "0",
    "promote_model_name": "demo",
}
