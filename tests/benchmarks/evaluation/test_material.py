"""Models and tasks of the benchmark of the evaluation."""

from pathlib import Path

import orjson
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evaluation.material import SCALES, Material, write_material


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def material(workdir: Path) -> Material:
    return write_material(workdir, "smoke")


def test_material_is_written_once(workdir: Path, material: Material) -> None:
    written = {path: path.stat().st_mtime_ns for path in material.root.rglob("*") if path.is_file()}

    again = write_material(workdir, "smoke")

    assert again == material
    assert {path: path.stat().st_mtime_ns for path in material.root.rglob("*") if path.is_file()} == written


def test_tasks_have_the_documents_and_prompts_that_the_scale_says(material: Material) -> None:
    scale = SCALES["smoke"]

    known = [orjson.loads(line) for line in (material.tasks / "known_00.jsonl").read_bytes().splitlines()]
    task = yaml.safe_load((material.tasks / "known_00.yaml").read_text())
    group = yaml.safe_load((material.tasks / "subjects.yaml").read_text())

    assert len(known) == scale.known_documents
    assert 2_500 < len((task["description"] + known[0]["question"]).encode()) < 3_500
    assert len(group["task"]) == scale.small_tasks


def test_two_large_models_have_one_shape_and_other_weights(material: Material) -> None:
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder) for folder in (material.base, material.tuned))

    assert len(AutoTokenizer.from_pretrained(material.base)) == base.config.vocab_size
    assert base.config.num_hidden_layers == SCALES["smoke"].large_layers
    assert base.get_input_embeddings().weight.shape == tuned.get_input_embeddings().weight.shape
    assert not base.get_input_embeddings().weight.equal(tuned.get_input_embeddings().weight)
