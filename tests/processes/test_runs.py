"""Whole runs in several processes: how they start, and how they end when something ends them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from osft import osft
from osft.training.result import TrainingResult

pytestmark = pytest.mark.slow

# What a busy machine needs to start two processes that import transformers, and to end them.
END_SECONDS = 180
ENDLESS = 1_000_000
# Tells of each process what came of its call, and whether it wrote the token ids.
SCRIPT = """
import json, os, sys
written = []
sys.addaudithook(lambda event, args: event == "os.rename" and str(args[1]).endswith(".parquet") and written.append(1))
from osft import osft
parameters = json.loads(sys.argv[1])
try:
    result = osft(**parameters)
    outcome = {"loss": result and result.final_loss}
except Exception as error:
    outcome = {"error": f"{type(error).__name__}: {error}"}
outcome["files"] = len(written)
open(sys.argv[2] + os.environ["RANK"] + ".json", "w").write(json.dumps(outcome))
"""


def parameters(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_path": str(model),
        "data_path": str(data),
        "ckpt_output_dir": str(output),
        "unfreeze_rank_ratio": 0.5,
        "effective_batch_size": 4,
        "max_tokens_per_gpu": 256,
        "max_seq_len": 128,
        "learning_rate": 5e-3,
        **changes,
    }


def run_under_torchrun(folder: Path, call: dict[str, Any]) -> list[dict[str, Any]]:
    """Call ``osft()`` in two processes of a torchrun that the user started; return what came of each call."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    subprocess.run([*command, orjson.dumps(call).decode(), f"{folder}/outcome"], timeout=END_SECONDS, check=True)
    return [orjson.loads((folder / f"outcome{rank}.json").read_bytes()) for rank in range(2)]


def test_a_call_in_processes_that_torchrun_started_joins_them_and_one_of_them_makes_the_data(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    outcomes = run_under_torchrun(tmp_path, parameters(tiny_model, messages_file, tmp_path / "out"))

    alone = osft(**parameters(tiny_model, messages_file, tmp_path / "alone", nproc_per_node=1))
    assert [outcome["loss"] for outcome in outcomes] == pytest.approx([alone.final_loss] * 2, rel=1e-5)
    assert [outcome["files"] > 0 for outcome in outcomes] == [True, False]


def test_bad_data_is_the_error_of_every_process(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"messages": [{"role": "human", "content": "x"}]}\n')

    outcomes = run_under_torchrun(tmp_path, parameters(tiny_model, data, tmp_path / "out"))

    assert outcomes[0]["error"].startswith("DataError: ")
    assert outcomes[0]["error"] == outcomes[1]["error"]


def test_two_pods_of_kubeflow_trainer_train_together(
    tiny_model: Path, messages_file: Path, tmp_path: Path, free_port: int,
    osft_train: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    call = parameters(tiny_model, messages_file, tmp_path / "out")
    job = {
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port)
    }  # fmt: skip

    pods = [osft_train(call, {**os.environ, **job, "PET_NODE_RANK": str(rank)}) for rank in range(2)]

    logs = [pod.communicate(timeout=END_SECONDS)[1] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], logs
    alone = osft(**{**call, "ckpt_output_dir": str(tmp_path / "alone"), "nproc_per_node": 1})
    assert TrainingResult.load(tmp_path / "out").final_loss == pytest.approx(alone.final_loss, rel=1e-5)


def test_an_argument_that_contradicts_the_job_is_refused_before_anything_starts(
    tiny_model: Path, messages_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_NNODES", "1")

    with pytest.raises(ValueError, match="nnodes=3 was given, but the job that this runs in has PET_NNODES=1"):
        osft(**parameters(tiny_model, messages_file, tmp_path / "out", nnodes=3, rdzv_id=1, rdzv_endpoint="a:1"))


@pytest.fixture
def endless_run(
    tiny_model: Path, messages_file: Path, tmp_path: Path, osft_train: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
) -> subprocess.Popen[str]:  # fmt: skip
    """A run in two processes that has taken its first steps."""
    call = parameters(tiny_model, messages_file, tmp_path / "out", nproc_per_node=2, num_epochs=ENDLESS)
    run = osft_train(call, os.environ)
    metrics = tmp_path / "out" / "metrics.jsonl"
    wait_until(lambda: run.poll() is not None or (metrics.is_file() and metrics.read_bytes().count(b"\n") > 2))
    return run


def test_sigterm_to_the_call_ends_all_processes_with_the_code_for_preempted(
    endless_run: subprocess.Popen[str], workers_of: Callable[..., dict[int, psutil.Process]]
) -> None:
    workers = workers_of(endless_run)

    endless_run.send_signal(signal.SIGTERM)

    log = endless_run.communicate(timeout=END_SECONDS)[1]
    assert endless_run.returncode == 143, log
    assert re.search(r"osft: .*stopped by SIGTERM.*the same call goes on", log)
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers.values())


def test_a_killed_process_is_named_with_its_exit_code(
    endless_run: subprocess.Popen[str], workers_of: Callable[..., dict[int, psutil.Process]]
) -> None:
    workers_of(endless_run)[1].kill()

    log = endless_run.communicate(timeout=END_SECONDS)[1]
    assert endless_run.returncode == 1
    assert "osft: rank 1 ended with exit code -9 (killed: is the machine out of memory?)." in log


def test_no_process_outlives_the_call(
    endless_run: subprocess.Popen[str],
    workers_of: Callable[..., dict[int, psutil.Process]],
) -> None:
    workers = list(workers_of(endless_run).values())

    endless_run.kill()

    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=END_SECONDS)[1] == []


def test_a_loss_that_is_not_finite_is_one_error_of_all_processes(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(broken)
    for file in tiny_model.iterdir():
        if not (broken / file.name).exists():
            (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RuntimeError, match=r"^step 1 of 2: loss nan.*rows \[.*Lower learning_rate"):
        osft(**parameters(broken, messages_file, tmp_path / "out", nproc_per_node=2))
