import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.data.download.hub import HubSource
from osft.errors import ConfigError
from tests.data.download.http_server import Answer, Server, ok, status

LINES = b'{"a": 1}\n{"a": 2}\n'
COMMIT, NEXT_COMMIT = "0123456789abcdef0123456789abcdef01234567", "123456789abcdef0123456789abcdef012345678"
API = "/api/datasets/osft"
# The hub's client reads the address as it is imported, and its import takes seconds: so one process asks for all.
PROGRAM = """
    import sys
    from dataclasses import asdict
    from pathlib import Path
    import orjson
    from osft.data.download import fetching
    from osft.data.download.download import download_dataset
    from osft.errors import DownloadError
    fetching.FIRST_WAIT_SECONDS = 0.001
    for uri in sys.argv[2:]:
        try:
            result = asdict(download_dataset(uri, Path(sys.argv[1]) / uri.split("/")[-1]))
        except DownloadError as error:
            result = str(error)
        print(orjson.dumps(result).decode(), flush=True)
"""
URIS = [
    *["hf://osft/elements@v1"] * 2,
    *["hf://osft/moving"] * 2,
    *["hf://osft/nothing", "hf://osft/gated", "hf://osft/busy", "hf://osft/silent"],
]


@pytest.fixture(scope="module")
def hub() -> Iterator[Server]:
    """A hub with two datasets of one file: one stays as it is, the other gets a new commit."""
    server = Server()
    server.answers[f"{API}/elements/revision/v1"] = serve_commit(server, "elements", COMMIT)
    first, second = serve_commit(server, "moving", COMMIT), serve_commit(server, "moving", NEXT_COMMIT)
    server.answers[f"{API}/moving"] = first + second
    server.answers[f"{API}/gated"] = [status(403)]
    server.answers[f"{API}/busy"] = [status(503)]
    server.answers[f"{API}/silent"] = [hang_up]
    yield server
    server.stop()


def serve_commit(server: Server, name: str, commit: str) -> list[Answer]:
    """Serve a dataset at one commit; return the answer that says that this is its commit."""
    file = [{"rfilename": "train.jsonl"}]
    info = orjson.dumps({"id": f"osft/{name}", "sha": commit, "siblings": file, "private": False, "tags": []})
    tree = orjson.dumps([{"type": "file", "path": "train.jsonl", "size": len(LINES), "oid": commit}])
    json = {"Content_Type": "application/json"}
    server.answers[f"{API}/{name}/revision/{commit}"] = [ok(info, **json)]
    for path in (f"{API}/{name}/tree/{commit}", f"{API}/{name}/paths-info/{commit}"):
        server.answers[path] = [ok(tree, **json)]
    headers = {"ETag": f'"{commit}"', "X_Repo_Commit": commit}
    server.answers[f"/datasets/osft/{name}/resolve/{commit}/train.jsonl"] = [ok(LINES, **headers)]
    return [ok(info, **json)]


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing."""
    handler.close_connection = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def results(folder: Path, hub: Server) -> list[Any]:
    """What the download of each of URIS gives: a report, or an error."""
    offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), *URIS]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    return [orjson.loads(line) for line in process.stdout.splitlines()]


def test_a_dataset_is_loaded_at_the_commit_of_its_revision(folder: Path, results: list[Any]) -> None:
    report = results[0]

    assert (folder / "elements@v1/rows.jsonl").read_bytes() == LINES.replace(b" ", b"")
    assert (report["revision"], report["rows"], report["unchanged"]) == (COMMIT, 2, False)
    assert [(file["name"], file["first_line"], file["lines"]) for file in report["files"]] == [("osft/elements", 1, 2)]


def test_a_dataset_whose_commit_is_the_same_is_not_loaded_again(hub: Server, results: list[Any]) -> None:
    assert results[1] == {**results[0], "unchanged": True}
    assert hub.paths.count(f"{API}/elements/revision/v1") == 2


def test_a_dataset_with_a_new_commit_is_loaded_again(results: list[Any]) -> None:
    assert [(report["revision"], report["unchanged"]) for report in results[2:4]] == [
        (COMMIT, False),
        (NEXT_COMMIT, False),
    ]


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [
        (
            4,
            "nothing",
            "the hub answers 404. Check the name and the revision; for a private or gated dataset set HF_TO",
        ),
        (5, "gated", "the hub answers 403. Check the name"),
        (6, "busy", "the hub answers 503."),
        (7, "silent", "the hub cannot be reached (Server disconnected"),
    ],
)
def test_a_dataset_that_the_hub_does_not_give_is_named(
    results: list[Any], number: int, name: str, message: str
) -> None:
    assert results[number].startswith(f"hf://osft/{name}: {message}")


def test_only_what_may_change_is_asked_again(hub: Server, results: list[Any]) -> None:
    assert hub.paths.count(f"{API}/gated") == 1
    assert hub.paths.count(f"{API}/busy") > 1


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://name", ("name", None, None)),
        ("hf://org/name:config@v1.0", ("org/name", "config", "v1.0")),
        ("hf://org/name@refs/pr/1", ("org/name", None, "refs/pr/1")),
    ],
)
def test_name_configuration_and_revision_are_read(uri: str, parts: tuple[str | None, ...]) -> None:
    source = HubSource.parse(uri)

    assert (source.name, source.config, source.revision) == parts


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://a:", "hf://a@", "hf://a b", "hf://ä"])
def test_another_form_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"is no dataset of a hub; allowed is hf://name\[:config\]\[@revision\]"):
        HubSource.parse(uri)


def test_a_local_folder_of_that_name_is_not_taken_for_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elements").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="a local 'elements' hides the hub's dataset"):
        HubSource.parse("hf://elements").copy_rows(None, tmp_path)  # type: ignore[arg-type]


def test_a_hub_that_is_switched_off_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    HubSource.parse("hf://osft/elements").is_unchanged(())

    assert "hf://osft/elements: the hub is switched off" in caplog.text
