from pathlib import Path

import pytest

from axpo.cli.overrides import load_config, parse_literal, split_overrides
from axpo.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_overrides_are_told_from_arguments_wherever_they_stand() -> None:
    argv = [
        "train",
        "--train.steps",
        "5",
        "c.toml",
        "--algorithm.clip_low=-1",
        "--resume",
        "--train.learning_rate",
        "-1",
    ]
    rest, overrides = split_overrides(argv)
    assert rest == ["train", "c.toml", "--resume"]
    assert overrides == {"train.steps": "5", "algorithm.clip_low": "-1", "train.learning_rate": "-1"}


@pytest.mark.parametrize("argv", [["--train.steps"], ["--train.steps", "--run.seed", "1"]])
def test_a_missing_value_is_told(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--train\.steps: expected a value"):
        split_overrides(argv)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1e-5", 1e-5),
        ("false", False),
        ("'7'", "7"),
        ("runs/x", "runs/x"),
        ("", ""),
        ("[1, 2]", [1, 2]),
        ("1\nother = 2", "1\nother = 2"),
        ("{a = 1}", {"a": 1}),
        ("1979-05-27", "1979-05-27"),
    ],
)
def test_literals_follow_toml_and_fall_back_to_text(text: str, value: object) -> None:
    assert parse_literal(text) == value and type(parse_literal(text)) is type(value)


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[model]\npath = "org/name"\n[train]\nsteps = 3\nlearning_rate = 0.5\n')
    config = load_config(path, {"train.steps": "9", "run.seed": "4"})
    assert (config.train.steps, config.train.learning_rate, config.run.seed) == (9, 0.5, 4)


def test_paths_in_the_file_are_relative_to_it_and_in_overrides_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe"
    (recipe / "weights").mkdir(parents=True)
    path = write(
        recipe, '[model]\npath = "weights"\n[data]\ntrain = "rows.jsonl"\neval = "mini:eval"\n[run]\noutput_dir = "o"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.model.path == str(recipe / "weights")
    assert (config.data.train, config.data.eval) == (str(recipe / "rows.jsonl"), "mini:eval")
    assert config.run.output_dir == Path("o")
    assert load_config(path, {"data.train": "rows.jsonl"}).data.train == str(tmp_path / "rows.jsonl")


def test_an_empty_text_switches_an_option_off(tmp_path: Path) -> None:
    path = write(tmp_path, '[model]\npath = "x"\n[data]\neval = "rows.jsonl"\n')
    assert load_config(path, {"data.eval": ""}).data.eval is None


@pytest.mark.parametrize("name", ["mini", "Qwen/Qwen3-VL-2B-Thinking", "/somewhere/else"])
def test_other_model_paths_stay_as_they_are(tmp_path: Path, name: str) -> None:
    assert load_config(write(tmp_path, f'[model]\npath = "{name}"\n')).model.path == name


def test_a_relative_model_folder_that_is_missing_still_means_a_folder(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, '[model]\npath = "./weights"\n')).model.path == str(tmp_path / "weights")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model\n", "not valid TOML"),
        ("model = 3\n", r"model: expected a table \[model\], got 3"),
        ('[model]\npath = "x"\nsize = 3\n', r"model\.size: unknown option"),
    ],
)
def test_a_broken_file_gives_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot read the configuration: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_an_unknown_override_names_the_nearest_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.learning_rate\?"):
        load_config(write(tmp_path, '[model]\npath = "x"\n'), {"train.learning_rat": "1"})


def test_an_override_into_something_that_is_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train: expected a table \[train\], got 3"):
        load_config(write(tmp_path, 'train = 3\n[model]\npath = "x"\n'), {"train.steps": "1"})


def test_a_model_path_that_no_file_system_takes_is_left_for_the_loader_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[model]\npath = '{'x' * 5000}'\n", encoding="utf-8")
    assert load_config(path).model.path == "x" * 5000


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000], ids=["nested", "digits"])
def test_a_value_that_the_toml_parser_cannot_take_is_one_clear_error(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[run]\nseed = {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path)
    assert parse_literal(value) == value
