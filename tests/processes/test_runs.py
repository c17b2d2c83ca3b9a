"""Whole runs in several processes: how they start, and how they end when something ends them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from osft import osft
from tests.conftest import short_training

pytestmark = pytest.mark.slow

# What a busy machine needs to start two processes that import transformers, and to end them.
END_SECONDS = 180
ENDLESS = 1_000_000
# Tells of each process what came of its calls, and whether it wrote the token ids.
SCRIPT = """
import json, os, sys
written = []
sys.addaudithook(lambda event, args: event == "os.rename" and str(args[1]).endswith(".parquet") and written.append(1))
from osft import osft
outcomes = []
for parameters in json.loads(sys.argv[1]):
    written.clear()
    try:
        result = osft(**parameters)
        outcome = {"loss": result and result.final_loss}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    outcomes.append({**outcome, "writes": len(written) > 0})
open(sys.argv[2] + os.environ["RANK"] + ".json", "w").write(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def messages_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of eight short conversations, one for all runs."""
    path = tmp_path_factory.mktemp("data") / "messages.jsonl"
    for number in range(8):
        turns = [{"role": "user", "content": f"{number} + 1?"}, {"role": "assistant", "content": str(number + 1)}]
        with path.open("ab") as file:
            file.write(orjson.dumps({"messages": turns}, option=orjson.OPT_APPEND_NEWLINE))
    return path


@pytest.fixture(scope="module")
def loss_alone(
    tiny_model: Path,
    messages_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> float:
    """Return the last loss of the run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return osft(**short_training(tiny_model, messages_file, folder, nproc_per_node=1)).final_loss


@pytest.fixture(scope="module")
def outcomes_under_torchrun(
    tiny_model: Path,
    messages_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[dict[str, Any]]]:
    """Call ``osft()`` thrice in two processes of a torchrun that the user started; return what came of each call."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "bad.jsonl").write_text('{"messages": [{"role": "human", "content": "x"}]}\n')
    calls = {
        "bad data": short_training(tiny_model, folder / "bad.jsonl", folder / "bad"),
        "not finite": short_training(
            copy_with_a_nan(tiny_model, folder / "broken"), messages_file, folder / "not finite"
        ),
        "good": short_training(tiny_model, messages_file, folder / "good"),
    }
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    arguments = [orjson.dumps(list(calls.values())).decode(), f"{folder}/outcome"]
    subprocess.run([*command, *arguments], timeout=END_SECONDS, check=True)
    by_rank = [orjson.loads((folder / f"outcome{rank}.json").read_bytes()) for rank in range(2)]
    return {name: [outcomes[number] for outcomes in by_rank] for number, name in enumerate(calls)}


def copy_with_a_nan(model: Path, target: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(target)
    for file in model.iterdir():
        if not (target / file.name).exists():
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_call_in_processes_that_torchrun_started_joins_them_and_one_of_them_makes_the_data(
    outcomes_under_torchrun: dict[str, list[dict[str, Any]]], loss_alone: float
) -> None:
    outcomes = outcomes_under_torchrun["good"]

    assert [outcome["loss"] for outcome in outcomes] == pytest.approx([loss_alone] * 2, rel=1e-5)
    assert [outcome["writes"] for outcome in outcomes] == [True, False]


def test_bad_data_is_the_error_of_every_process(
    outcomes_under_torchrun: dict[str, list[dict[str, Any]]],
) -> None:
    first, second = outcomes_under_torchrun["bad data"]

    assert first["error"].startswith("DataError: ")
    assert first["error"] == second["error"]


def test_a_loss_that_is_not_finite_is_one_error_of_all_processes(
    outcomes_under_torchrun: dict[str, list[dict[str, Any]]],
) -> None:
    first, second = outcomes_under_torchrun["not finite"]

    assert re.match(r"TrainingError: step 1 of 2: loss nan.*rows \[.*Lower learning_rate", first["error"])
    assert first["error"] == second["error"]


def in_pod(rank: int, port: int) -> dict[str, str]:
    """Return the environment of one of two pods of Kubeflow Trainer."""
    job = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    return {**os.environ, **job, "PET_NODE_RANK": str(rank)}


def test_a_pod_that_is_stopped_while_it_waits_for_another_ends_at_once_with_the_code_for_preempted(
    tiny_model: Path,
    messages_file: Path,
    tmp_path: Path,
    free_port: int,
    wait_until: Callable[..., None],
    osft_train: Callable[..., subprocess.Popen[str]],
) -> None:
    pod = osft_train(short_training(tiny_model, messages_file, tmp_path / "out"), in_pod(0, free_port))

    def is_waiting() -> bool:
        children = psutil.Process(pod.pid).children()
        ports = [connection.laddr.port for child in children for connection in child.net_connections()]
        return pod.poll() is not None or free_port in ports

    wait_until(is_waiting)

    pod.send_signal(signal.SIGTERM)

    log = pod.communicate(timeout=END_SECONDS)[1]
    assert pod.returncode == 143, log
    assert "stopped by SIGTERM; the same call goes on from what is there" in log


def test_an_argument_that_contradicts_the_job_is_refused_before_anything_starts(
    tiny_model: Path,
    messages_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PET_NNODES", "1")

    with pytest.raises(ValueError, match="nnodes=3 was given, but the job that this runs in has PET_NNODES=1"):
        osft(**short_training(tiny_model, messages_file, tmp_path / "out", nnodes=3, rdzv_id=1, rdzv_endpoint="a:1"))


@pytest.fixture
def endless_run(
    tiny_model: Path,
    messages_file: Path,
    tmp_path: Path,
    osft_train: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
) -> subprocess.Popen[str]:
    """A run in two processes that has taken its first steps."""
    call = short_training(tiny_model, messages_file, tmp_path / "out", nproc_per_node=2, num_epochs=ENDLESS)
    run = osft_train(call, os.environ)
    metrics = tmp_path / "out" / "metrics.jsonl"
    wait_until(lambda: run.poll() is not None or (metrics.is_file() and metrics.read_bytes().count(b"\n") > 2))
    return run


def test_sigterm_again_and_again_to_all_processes_ends_them_with_state_saved_and_the_code_for_preempted(
    endless_run: subprocess.Popen[str], tmp_path: Path
) -> None:
    call = psutil.Process(endless_run.pid)
    processes = [call, *call.children(recursive=True)]

    for process in processes * 2:
        with suppress(psutil.NoSuchProcess):
            process.terminate()

    log = endless_run.communicate(timeout=END_SECONDS)[1]
    assert endless_run.returncode == 143, log
    stopped = re.search(r"osft: .*stopped by SIGTERM after step (\d+) of .*; the same call goes on from there", log)
    assert stopped, log
    assert (tmp_path / "out" / "checkpoints" / f"step_{stopped[1]}" / "complete.json").is_file()
    assert len(processes) >= 4
    assert not any(process.is_running() for process in processes[1:])


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
