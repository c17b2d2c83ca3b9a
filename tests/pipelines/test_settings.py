"""Parameters on a command line take the types that the pipeline declares."""

import pytest
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from osft.errors import ConfigError
from pipelines.ratio_sweep import ratio_sweep
from pipelines.settings import parse_settings, require_all, with_defaults


@dsl.container_component
def say(text: str) -> dsl.ContainerSpec:
    """Say something."""
    return dsl.ContainerSpec(image="a/b:1", command=["echo", text])


@dsl.pipeline(name="of-all-types")
def of_all_types(
    data_uri: str,
    num_epochs: int = 3,
    learning_rate: float = 2e-5,
    use_liger: bool = False,
    patterns: list = [],  # noqa: B006 kfp reads the default and never calls this with it
    limits: dict = {},  # noqa: B006 as above
) -> None:
    """Say where the data are."""
    say(text=data_uri)


@pytest.fixture(scope="module")
def pipeline() -> BaseComponent:
    return of_all_types


def test_a_setting_takes_the_type_that_the_pipeline_declares(pipeline: BaseComponent) -> None:
    settings = [
        "num_epochs=2", "learning_rate=1e-3", "use_liger=True", "data_uri=a,b=c", 'patterns=["q_proj"]',
        'limits={"a": 0.02}',
    ]  # fmt: skip

    assert parse_settings(settings, pipeline) == {
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "use_liger": True,
        "data_uri": "a,b=c",
        "patterns": ["q_proj"],
        "limits": {"a": 0.02},
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=2", "'epochs': there is no parameter of this name. Did you mean num_epochs"),
        ("=2", "'': there is no parameter of this name. Did you mean data_uri, "),
        ("num_epochs", "has no value. Give name=value"),
    ],
)
def test_a_setting_that_is_no_parameter_is_refused(pipeline: BaseComponent, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings([setting], pipeline)


@pytest.mark.parametrize(
    "setting", ["num_epochs=two", "num_epochs=1.5", "use_liger=maybe", "patterns=q", "limits=[1]", "num_epochs=true"]
)
def test_a_setting_of_the_wrong_type_is_refused(pipeline: BaseComponent, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a (whole number|number|true or false|list|JSON object)"):
        parse_settings([setting], pipeline)


def test_a_parameter_without_a_default_needs_a_value(pipeline: BaseComponent) -> None:
    require_all({"data_uri": ""}, pipeline)

    with pytest.raises(ConfigError, match="the parameter data_uri has no value. Give --set data_uri="):
        require_all({"num_epochs": 2}, pipeline)


def test_what_is_not_set_has_its_default(pipeline: BaseComponent) -> None:
    arguments = with_defaults({"data_uri": "x", "num_epochs": 2}, pipeline)

    assert (arguments["num_epochs"], arguments["learning_rate"], arguments["patterns"]) == (2, 2e-5, [])


def test_ratios_that_make_no_sweep_are_refused_before_it_runs() -> None:
    with pytest.raises(ConfigError, match=r"sweep_ratios\[1\] is 25, which is no number above 0 and at most 1"):
        parse_settings(["sweep_ratios=[0.1, 25]"], ratio_sweep)
