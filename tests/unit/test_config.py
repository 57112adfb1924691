import pytest
from pydantic import ValidationError

from axpo.errors import ConfigError
from axpo.trainer.config import Config, check_option, format_toml, option_names, parse_config

MODEL = {"path": "somewhere"}


def lines_of(table: dict) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_config(table, origin="c.toml")
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"algorithm": {"clip_low": -1}}, "c.toml: algorithm.clip_low: expected a number >= 0, got -1"),
        ({"model": {"path": "x", "lora_alpha": 0}}, "c.toml: model.lora_alpha: expected a number >= 1, got 0"),
        ({"rollout": {"temperature": 0}}, "c.toml: rollout.temperature: expected a number > 0, got 0"),
        ({"rollout": {"top_p": 1.5}}, "c.toml: rollout.top_p: expected a number <= 1, got 1.5"),
        (
            {"train": {"steps": "many"}},
            "c.toml: train.steps: expected integer, unable to parse string as an integer, got 'many'",
        ),
        (
            {"train": {"schedule": "step"}},
            "c.toml: train.schedule: expected 'constant', 'linear' or 'cosine', got 'step'",
        ),
        (
            {"train": {"learning_rte": 1}},
            "c.toml: train.learning_rte: unknown option; did you mean train.learning_rate?",
        ),
        ({"trian": {}}, "c.toml: trian: unknown option; did you mean train?"),
        ({"rollout": {"clip_low": 0.1}}, "c.toml: rollout.clip_low: unknown option; did you mean algorithm.clip_low?"),
        ({"train": {"learning_rate": float("nan")}}, "c.toml: train.learning_rate: expected a finite number, got nan"),
        ({"run": {"seed": -1}}, "c.toml: run.seed: expected a number >= 0, got -1"),
        ({"train": 3}, "c.toml: train: expected a table [train], got 3"),
    ],
)
def test_each_mistake_gives_one_line_that_names_it(table: dict, line: str) -> None:
    assert lines_of({"model": MODEL, **table}) == [line]


def test_all_mistakes_are_told_at_once() -> None:
    assert lines_of({"train": {"steps": 0}, "eval": {"num_samples": 0}}) == [
        "c.toml: model: required but not given",
        "c.toml: train.steps: expected a number >= 1, got 0",
        "c.toml: eval.num_samples: expected a number >= 1, got 0",
    ]


def test_toml_of_a_configuration_gives_the_configuration_back() -> None:
    import tomllib

    config = Config.model_validate(
        {
            "model": {"path": 'a "quoted" \\ päth\n', "lora_alpha": 7},
            "train": {"learning_rate": 1e-7},
            "data": {
                "tools": ["image_zoom_in", "my.module:tool"],
                "tool_options": {"my.module:tool": {"sizes": [1, 2.5], "name": "x"}},
            },
        }
    )
    assert parse_config(tomllib.loads(format_toml(config)), origin="copy") == config


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"model": MODEL}).train.steps = 3


def test_unknown_option_names_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown option; did you mean train\.steps\?"):
        check_option("train.stepz")
    check_option("algorithm.kl_coef")
    assert len(option_names()) <= 72


def test_names_are_a_list_or_one_text_with_commas() -> None:
    for written in (["image_zoom_in", "python"], "image_zoom_in, python"):
        assert parse_config({"model": MODEL, "data": {"tools": written}}, origin="c").data.tools == (
            "image_zoom_in",
            "python",
        )
    with pytest.raises(ConfigError, match=r"data\.tools: expected list, got 3"):
        parse_config({"model": MODEL, "data": {"tools": 3}}, origin="c")
