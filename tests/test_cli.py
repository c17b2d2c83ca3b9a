"""The command line: each step on files, errors in one line."""

import inspect
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
import typer.main

from osft.api import osft
from osft.cli import app, main
from osft.config import TrainingConfig


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "osft.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120
    )


def test_train_has_every_parameter_of_osft_with_dashes() -> None:
    command = typer.main.get_command(app).commands["train"]

    options = {parameter.opts[0] for parameter in command.params}

    parameters = {name for name in inspect.signature(osft).parameters if name != "kwargs"}
    of_the_engine = {field.name for field in fields(TrainingConfig)} - {"beta1", "beta2", "eps", "weight_decay"}
    assert options == {f"--{name.replace('_', '-')}" for name in parameters | of_the_engine}
    required = {parameter.name for parameter in command.params if parameter.required}
    assert required == {
        name
        for name, parameter in inspect.signature(osft).parameters.items()
        if parameter.default is inspect.Parameter.empty and name != "kwargs"
    }


def test_the_data_commands_lead_from_a_uri_to_token_ids(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    raw, valid, processed = tmp_path / "raw", tmp_path / "valid", tmp_path / "processed"

    downloaded = run("download", messages_file, "--output", raw)
    validated = run("validate", raw, "--output", valid)
    tokenized = run("process", valid, "--model", tiny_model, "--output", processed, "--holdout-fraction", "0.25")

    assert (raw / "rows.jsonl").read_bytes() == messages_file.read_bytes()
    assert downloaded.stdout.startswith("8 rows, ")
    assert validated.stdout.startswith("8 rows: 8 valid, 0 quarantined")
    report = orjson.loads((valid / "validation.json").read_bytes())
    assert (report["rows_in"], report["rows_valid"], report["rows_quarantined"]) == (8, 8, 0)
    train, holdout = pq.read_table(processed / "train.parquet"), pq.read_table(processed / "holdout.parquet")
    assert train.num_rows + holdout.num_rows == 8
    assert holdout.num_rows >= 1
    assert {"input_ids", "labels"} <= set(train.column_names)
    assert tokenized.returncode == 0


def test_train_leaves_a_model(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    finished = run(
        "train", "--model-path", tiny_model, "--data-path", messages_file, "--ckpt-output-dir", tmp_path / "out",
        "--unfreeze-rank-ratio", "0.5", "--effective-batch-size", "4", "--max-tokens-per-gpu", "512",
        "--max-seq-len", "128", "--learning-rate", "1e-3", "--nproc-per-node", "1", "--target-patterns", "q_proj",
        "--target-patterns", "up_proj", "--lr-scheduler-kwargs", '{"num_cycles": 0.4}',
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("optimizer steps: 2, loss ")
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()
    # A log line tells how far it is.
    assert "step 2 of 2" in finished.stderr


def test_plan_says_from_a_configuration_alone_whether_a_run_fits_a_card(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path / "config.json")
    size = ["--unfreeze-rank-ratio", "0.25", "--max-tokens-per-gpu", "1024"]

    large, small = (
        run("plan", "--model", tmp_path / "config.json", *size, "--gpu-memory", card) for card in ("L40S", "1.001")
    )

    assert large.returncode == small.returncode == 0
    assert "merged weights" in large.stdout
    assert "Fits: needs 0.0 GiB on each GPU, within the card's 45.0 GiB" in " ".join(large.stdout.split())
    assert "more than the card's 1.0 GiB" in " ".join(small.stdout.split())


def test_plan_tells_what_each_of_several_gpus_needs(tiny_model: Path) -> None:
    size = ["--unfreeze-rank-ratio", "0.25", "--max-tokens-per-gpu", "1024"]

    finished = run("plan", "--model", tiny_model, *size, "--gpu-memory", "L40S", "--gpus", "4")

    assert finished.returncode == 0
    assert "Fits: needs 0.0 GiB on each of 4 GPUs, within the card's 45.0 GiB" in " ".join(finished.stdout.split())


def test_a_pvc_uri_is_looked_up_in_the_workspace(messages_file: Path, tmp_path: Path) -> None:
    finished = run(
        "download", f"pvc://{messages_file.name}", "--output", tmp_path / "raw", OSFT_WORKSPACE=str(tmp_path)
    )

    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "raw" / "rows.jsonl").is_file()


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_one_line_and_exit_code_1_and_debug_shows_the_traceback(tmp_path: Path, debug: bool) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "human", "content": "hi"}]}\n')

    finished = run("validate", bad, "--output", tmp_path / "out", *(["--debug"] if debug else []))

    assert finished.returncode == 1
    if debug:
        assert "Traceback (most recent call last)" in finished.stderr
    else:
        (line,) = finished.stderr.splitlines()
        assert line.startswith(f"osft: {bad}: 1 of 1 rows are invalid (line 1, messages[0].role")


def test_an_error_that_is_not_ours_is_one_line_too(messages_file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()

    finished = run("validate", messages_file, "--output", blocked / "out")

    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith("osft: NotADirectoryError: ")
    assert line.endswith("(--debug shows the traceback)")


@pytest.mark.parametrize(
    "arguments", [["validate"], ["nonsense"], ["validate", "x", "--output", "y", "--max-invalid-fraction", "much"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


def test_arguments_that_are_not_json_are_named(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    required = [
        "--model-path", tiny_model, "--data-path", messages_file, "--ckpt-output-dir", tmp_path / "out",
        "--unfreeze-rank-ratio", "0.5", "--effective-batch-size", "4", "--max-tokens-per-gpu", "512",
        "--max-seq-len", "128", "--learning-rate", "1e-3",
    ]  # fmt: skip

    finished = run("train", *required, "--lr-scheduler-kwargs", "[1]")

    assert finished.returncode == 1
    assert finished.stderr.startswith("osft: --lr-scheduler-kwargs '[1]' is not a JSON object")


@pytest.fixture
def tasks(tmp_path: Path, write_parity_task: Callable[[Path, str], None]) -> Path:
    """A folder with the tasks ``kept`` and ``learnt``."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("kept", "learnt"):
        write_parity_task(folder, name)
    return folder


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, which has torch and lm-eval imported; return exit code, output and errors."""
    logger = logging.getLogger("osft")
    for name in ("handlers", "level", "propagate"):
        # What the command sets up for its process is put back at the end of the test.
        monkeypatch.setattr(logger, name, getattr(logger, name))

    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["osft", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run_command


def test_evaluate_tells_what_was_lost_and_fails_only_when_asked_to(
    tiny_model: Path, tasks: Path, tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = [
        "evaluate", "--base", tiny_model, "--tuned", tiny_model, "--tasks", "kept", "--target-tasks", "learnt",
        "--include-path", tasks, "--batch-size", "auto", "--max-forgetting", "1", "--task-limits", '{"kept": 1}',
        "--min-target-gain", "0.5", "--cache", tmp_path / "cache", "--output", tmp_path / "out",
    ]  # fmt: skip

    finished_code, finished_output, _ = run_here(*arguments)
    failed_code, failed_output, failed_errors = run_here(*arguments, "--fail-run")

    assert (finished_code, failed_code) == (0, 1)
    assert "not passed" in finished_output
    assert finished_output == failed_output
    last_line = failed_errors.splitlines()[-1]
    assert last_line.startswith("osft: the tuned model did not pass: ")
    assert last_line.endswith(f"The report is {tmp_path / 'out' / 'report.html'}.")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "forgetting.json", "measurements", "report.html", "report.md", "samples.jsonl",
    }  # fmt: skip
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generation", "[1]"], r"--generation '[1]' is not a JSON object"),
        (["--task-limits", "{"], "--task-limits '{' is not JSON"),
        (["--batch-size", "many"], "--batch-size 'many' is neither a whole number nor auto"),
        (["--backend", "tgi"], "backend is 'tgi'. Give one of hf, vllm, openai"),
        (["--backend", "openai"], "backend 'openai' with base_url 'None'. Give base_url with backend openai"),
    ],
)
def test_an_option_of_the_evaluation_that_cannot_hold_is_named(options: list[str], message: str) -> None:
    failed = run("evaluate", "--base", "a", "--tuned", "b", "--tasks", "kept", "--output", "out", *options)

    assert failed.returncode == 1
    assert failed.stderr.startswith(f"osft: {message}")
