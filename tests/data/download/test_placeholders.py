"""A dataset's URI in which something was to be filled in and was not."""

from pathlib import Path

import pytest

from osft.data.download.download import download_dataset
from osft.data.increments.times import fill_date
from osft.errors import ConfigError

MACROS = (
    "[[ScheduledTime]]",
    "[[ScheduledTime.2006-01-02]]",
    "[[CurrentTime]]",
    "{{$.scheduledTime.strftime('%Y-%m-%d')}}",
    "{{workflow.creationTimestamp}}",
)


@pytest.mark.parametrize("macro", MACROS)
@pytest.mark.parametrize("scheme", ["pvc://", "s3://logs/", "https://host/", "hf://", ""])
def test_a_macro_that_the_server_left_as_it_is_is_named(macro: str, scheme: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        download_dataset(f"{scheme}{macro}.jsonl", tmp_path)

    assert str(error.value) == (
        f"the dataset URI has '{macro}', which the pipeline server did not fill in. Write {{date:%Y-%m-%d}} in its "
        "place, the day that data_date names."
    )


@pytest.mark.parametrize("field", ["{date:%Y-%m-%d", "{date}", "{date-%Y}", "{ date:%Y}", "{Date:%Y}"])
def test_a_date_that_is_not_written_as_one_is_refused_and_not_looked_for(field: str, tmp_path: Path) -> None:
    uri = fill_date(f"https://host/{field}.jsonl?key=secret", "2026-11-22")

    with pytest.raises(ConfigError, match=r"has '\{date' without a format .* Write \{date:%Y-%m-%d\}\.") as error:
        download_dataset(uri, tmp_path)

    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["[[]ab].jsonl", "{dated}.jsonl", "[[]a[]]*.jsonl", "{a}{b}.jsonl"])
def test_other_brackets_belong_to_a_name_or_a_pattern(name: str, tmp_path: Path) -> None:
    for literal in ("[ab].jsonl", "{dated}.jsonl", "[a].jsonl", "{a}{b}.jsonl"):
        (tmp_path / literal).write_text('{"a": 1}\n')

    report = download_dataset(str(tmp_path / name), tmp_path / "out")

    assert report.rows == 1
