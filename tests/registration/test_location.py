"""Where the registry says that files are."""

import pytest

from osft.errors import ConfigError
from osft.registration.location import uri_in, workspace_location

PATH = "models/demo/v0003"


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("", "pvc://my-claim/models/demo/v0003"),
        ("pvc://other-claim", "pvc://other-claim/models/demo/v0003"),
        ("pvc://other-claim/osft/", "pvc://other-claim/osft/models/demo/v0003"),
        ("s3://bucket/prefix", "s3://bucket/prefix/models/demo/v0003"),
        (
            "s3://bucket?endpoint=https://s3.example.com&defaultRegion=eu-1",
            "s3://bucket/models/demo/v0003?endpoint=https://s3.example.com&defaultRegion=eu-1",
        ),
    ],
)
def test_a_version_is_found_below_the_workspace(location: str, uri: str) -> None:
    found = uri_in(workspace_location(location, "my-claim"), PATH)

    assert found == uri


@pytest.mark.parametrize(
    "location",
    ["/workspace", "gs://bucket", "pvc://", "s3:///a", "pvc://A_B", "pvc://a/../b", "pvc://a/%2e%2e/b", "S3://bucket"],
)
def test_a_location_that_is_neither_volume_nor_bucket_is_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="is neither a volume nor a bucket. Give pvc://CLAIM"):
        workspace_location(location, "my-claim")


@pytest.mark.parametrize(
    "location",
    ["s3://me:hush@bucket/a", "s3://bucket/a?AWS_SECRET_ACCESS_KEY=hush", "pvc://claim?endpoint=hush",
     "s3:me:hush@bucket", "s3://bucket/a#hush", "s3://bucket/a\nhush", "s3://bucket/a?", "pvc://claim hush",
     "s3://bucket?endpoint=https://hush&endpoint=https://s3.example.com"],
)  # fmt: skip
def test_a_location_with_credentials_is_refused_and_not_repeated(location: str) -> None:
    with pytest.raises(ConfigError, match="says more than a place, such as credentials. Give pvc://CLAIM") as caught:
        workspace_location(location, "my-claim")

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("location", ["s3://bucket/a?hush", "pvc://[claim"])
def test_a_location_that_cannot_be_taken_apart_is_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="location is not an address. Give pvc://CLAIM"):
        workspace_location(location, "my-claim")


@pytest.mark.parametrize(
    "endpoint",
    ["", "hush", "ftp://hush", "https://", "https://key:hush%40s3.example.com", "https://s3.example.com/?token=hush",
     "https://s3.example.com/hush", "https://s3.example.com%0Ahush", "https://s3.example.com:hush"],
)  # fmt: skip
def test_an_endpoint_that_is_no_server_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"its endpoint is not https://HOST\[:PORT\]. Give pvc://CLAIM") as caught:
        workspace_location(f"s3://bucket?endpoint={endpoint}", "my-claim")

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("region", ["", "EU hush", "a/hush"])
def test_a_region_that_is_none_is_refused_and_not_repeated(region: str) -> None:
    with pytest.raises(ConfigError, match=r"its defaultRegion is not the name of a region") as caught:
        workspace_location(f"s3://bucket?defaultRegion={region.replace(' ', '+')}", "my-claim")

    assert "hush" not in str(caught.value)
