from pathlib import Path

import pytest
import yaml

from learner import methods
from learner.config import RunConfig
from learner.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_unknown_keys_fail_at_every_depth_and_are_named() -> None:
    with pytest.raises(InputError, match=r"stepz.*") as caught:
        RunConfig.parse({"stepz": 3, "backbone": {"layers": 4}})
    assert "backbone.layers" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("image_size", 4), ("augment", {"operations": []}), ("augment", {"operations": ["Blur"]})],
)
def test_values_out_of_range_fail(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        RunConfig.parse({key: value})


def test_a_saved_configuration_is_complete_and_reads_back_equal(tmp_path: Path) -> None:
    config = RunConfig(method="fixmatch", options={"threshold": 0.9}, steps=7)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    assert set(yaml.safe_load((tmp_path / "config.json").read_text())) == set(RunConfig.model_fields)


def test_missing_and_malformed_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        RunConfig.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="no mapping"):
        RunConfig.load(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="no YAML"):
        RunConfig.load(tmp_path / "bad.yaml")


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().steps = 5  # type: ignore[misc]


RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "ssfer")  # a pipeline, tested on its own


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_whole_and_its_method_builds(path: Path) -> None:
    given = yaml.safe_load(path.read_text())
    config = RunConfig.load(path)
    assert set(given) == set(RunConfig.model_fields), "a configuration file leaves nothing to defaults"
    assert methods.build(config.method, 8, 256, config.options).name == config.method
    head = path.read_text().splitlines()[:12]
    for word in ("command:", "hardware:", "duration:", "expected:"):
        assert any(line.startswith("#") and word in line for line in head), f"{path.name} opens without {word}"
    assert any(f"--config configs/{path.name}" in line for line in head), "the command is another file's"


def test_every_method_of_the_papers_has_a_configuration() -> None:
    shipped = {path.stem: RunConfig.load(path).method for path in RUNS}
    named = ("facemix", "ema_teacher", "supervised", "fixmatch", "flexmatch", "adacm", "leaf", "lion", "loop")
    assert shipped.items() >= {name: name for name in named}.items()
    assert methods.preset_of(shipped["remop"]) == methods.preset_of("remop")
