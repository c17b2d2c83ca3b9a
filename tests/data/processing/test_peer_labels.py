"""Our labels beside those of instructlab-training, whose backend this project takes the place of.

On the shared subset (ChatML, EOS closes a turn, contents whose edges do not merge with the frame) ids and labels are
the same, id by id. Where they differ:

- ``closing``: the peer closes a turn with the tokenizer's EOS only. Where the template closes it with another token
  (Gemma's ``<end_of_turn>``), the peer never trains it and the model does not learn to stop. We train it.
- ``think``: the peer trains from the first character of the content, we from the end of the generation prompt. So the
  empty think block that a reasoning template writes before an answer is trained here only: the model has to write it.
- ``edges``: the peer puts tokens of its own around each content before it tokenizes, so that a line break of the
  header and one of the content never become one token. Its ids are not those that the text has at inference.
- ``white space``: of an unmasked question the peer trains the white space around it too, we do not: templates strip
  it or keep it, and it says nothing.
- ``control text``: the peer reads ``<|im_end|>`` typed by a user as that token. We keep it as text.
- ``short``: the peer drops rows of fewer than 20 tokens. We keep them.

The peer's side is in a file that :func:`label_with_the_peer` made, ``data_path`` the rows of a case, ``max_seq_len``
1000, ``num_cpu_procs`` 1. Where instructlab-training is installed, the file is checked against it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from osft.data.processing.tokenizing import ConversationEncoder, ParsedRow, load_tokenizer
from osft.data.validation.rows import IGNORED_LABEL

STORED_LABELS = Path(__file__).with_name("instructlab_training_labels.json")
"""Tokenizer, cases with their rows, and the output of :func:`label_with_the_peer` for each."""

Labelled = list[tuple[list[int], list[int]]]
"""``input_ids`` and ``labels`` of each row."""


@pytest.fixture
def stored() -> dict[str, Any]:
    return json.loads(STORED_LABELS.read_text(encoding="utf-8"))


def save_tokenizer(config: dict[str, Any], case: dict[str, Any], folder: Path) -> str:
    """Save a byte-level BPE whose merges spell the words of ``config`` and nothing else, whatever trains one."""
    pieces = [*config["special_tokens"], *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in config["words"]:
        for length in range(1, len(word)):
            if word[: length + 1] not in pieces:
                pieces.append(word[: length + 1])
                merges.append((word[:length], word[length]))
    core = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(config["special_tokens"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=case["eos_token"])
    tokenizer.chat_template = case["chat_template"]
    tokenizer.save_pretrained(folder)
    # The peer reads the model's type.
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def label_with_the_peer(config: dict[str, Any], case: dict[str, Any], folder: Path) -> Labelled:
    """Return what instructlab-training makes of the rows of a case."""
    from instructlab.training.data_process import process_messages_into_input_ids

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in case["rows"]))
    process_messages_into_input_ids(
        data_path=str(rows),
        data_output_path=str(folder / "processed"),
        max_seq_len=1000,
        model_path=save_tokenizer(config, case, folder / "tokenizer"),
        num_cpu_procs=1,
    )
    processed = map(json.loads, (folder / "processed" / "data.jsonl").read_text().splitlines())
    return [(row["input_ids"], row["labels"]) for row in processed]


def label_ourselves(config: dict[str, Any], case: dict[str, Any], folder: Path) -> Labelled:
    encoder = ConversationEncoder(load_tokenizer(save_tokenizer(config, case, folder)), unmask_messages=False)
    batches = [encoder.encode([ParsedRow(line=1, fields=row, key=0, hash=bytes(16))]) for row in case["rows"]]
    return [(batch.input_ids.tolist(), batch.labels.tolist()) for batch in batches]


def find_trained_by_one(mine: Labelled, other: Labelled, folder: Path) -> list[str]:
    """Decode, for each row, the tokens that ``mine`` trains and ``other`` does not; the ids must be the same."""
    tokenizer = load_tokenizer(str(folder))
    texts = []
    for (my_ids, my_labels), (other_ids, other_labels) in zip(mine, other, strict=True):
        assert my_ids == other_ids
        pairs = zip(my_labels, other_labels, strict=True)
        texts.append(tokenizer.decode([my for my, theirs in pairs if my != theirs == IGNORED_LABEL]))
    return texts


@pytest.mark.parametrize("name", ["shared", "shared, unmasked"])
def test_the_shared_subset_has_the_same_ids_and_labels(stored: dict[str, Any], tmp_path: Path, name: str) -> None:
    case = stored["cases"][name]

    ours = label_ourselves(stored["config"], case, tmp_path)

    assert [list(row) for row in ours] == case["peer"]


@pytest.mark.parametrize(
    ("name", "only_ours", "only_theirs"),
    [
        ("closing", ["<end_of_turn>", "<end_of_turn><end_of_turn>"], ["", ""]),
        ("think", ["<think>\n</think>\n"], [""]),
        ("white space", [""], ["   "]),
    ],
)
def test_each_difference_in_the_labels_is_explained(
    stored: dict[str, Any], tmp_path: Path, name: str, only_ours: list[str], only_theirs: list[str]
) -> None:
    case = stored["cases"][name]

    ours = label_ourselves(stored["config"], case, tmp_path)

    assert find_trained_by_one(ours, case["peer"], tmp_path) == only_ours
    assert find_trained_by_one(case["peer"], ours, tmp_path) == only_theirs


def test_only_our_ids_are_those_of_the_template_where_a_content_merges_with_its_frame(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    case = stored["cases"]["edges"]

    ours = label_ourselves(stored["config"], case, tmp_path)

    tokenizer = load_tokenizer(str(tmp_path))
    expected = [tokenizer.apply_chat_template(row["messages"], return_dict=False) for row in case["rows"]]
    assert [ids for ids, _ in ours] == expected
    assert [ids for ids, _ in case["peer"]] != expected
    assert tokenizer.batch_decode([ids for ids, _ in case["peer"]]) == tokenizer.batch_decode(expected)


def test_only_the_peer_takes_a_typed_control_token_for_one(stored: dict[str, Any], tmp_path: Path) -> None:
    case = stored["cases"]["control text"]

    ours = label_ourselves(stored["config"], case, tmp_path)

    tokenizer = load_tokenizer(str(tmp_path))
    closing = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (our_ids, _), (their_ids, _) = ours[0], case["peer"][0]
    assert (our_ids.count(closing), their_ids.count(closing)) == (2, 3)
    assert tokenizer.decode(our_ids) == tokenizer.decode(their_ids)


def test_only_the_peer_drops_short_rows(stored: dict[str, Any], tmp_path: Path) -> None:
    case = stored["cases"]["short"]

    ours = label_ourselves(stored["config"], case, tmp_path)

    assert len(ours[0][0]) < 20
    assert [list(row) for row in ours[1:]] == case["peer"]


def test_the_stored_labels_are_those_of_instructlab_training(stored: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("instructlab.training", reason="instructlab-training is not installed")

    for index, case in enumerate(stored["cases"].values()):
        folder = tmp_path / str(index)
        folder.mkdir()
        theirs = label_with_the_peer(stored["config"], case, folder)
        assert [list(row) for row in theirs] == case["peer"]
