"""Settings and taxonomies: what a person may write, and what is refused with which words."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from annotator import taxonomy
from annotator.errors import InputError, TaxonomyError, WorkspaceError
from annotator.settings import DEFAULT_METHODS, FILE, Settings, Workspace

SLUGS = st.lists(st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True), min_size=2, max_size=30, unique=True)


def test_a_workspace_reads_back_what_was_made(tmp_path: Path) -> None:
    made = Workspace.create(tmp_path / "w", taxonomy.RAFDB, learner={"image_size": 64})
    read = Workspace.open(tmp_path / "w")
    assert read.settings == made.settings
    assert read.settings.taxonomy == taxonomy.RAFDB
    assert read.settings.learner.image_size == 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"queue": {"lease_seconds": -5}}, "-5"),
        ({"queue": {"shares": {"coverage": 0, "uncertain": 0, "review": 0, "quota": 0, "random": 0}}}, "above 0"),
        ({"server": {"port": 70000}}, "70000"),
        ({"learner": {"image_size": "big"}}, "big"),
        ({"learner": {"methods": []}}, "learner.methods"),
        ({"learner": {"methods": ["lion", "leaf", "lion"]}}, "'lion' is named twice"),
        ({"learner": {"methods": ["../lion"]}}, "../lion"),
        ({"learner": {"methods": ["leaf"], "method": "lion"}}, "keep methods alone"),
    ],
)
def test_a_wrong_setting_names_key_and_value(tmp_path: Path, change: dict[str, object], words: str) -> None:
    root = Workspace.create(tmp_path / "w", taxonomy.FERPLUS).root
    data = yaml.safe_load((root / FILE).read_text())
    (root / FILE).write_text(yaml.safe_dump({**data, **change}))
    with pytest.raises(InputError, match=words):
        Workspace.open(root)


def test_one_method_is_a_list_of_one(tmp_path: Path) -> None:
    root = Workspace.create(tmp_path / "w", taxonomy.FERPLUS).root
    assert Workspace.open(root).settings.learner.methods == DEFAULT_METHODS
    data = yaml.safe_load((root / FILE).read_text())
    assert data["learner"].pop("methods") == list(DEFAULT_METHODS)
    data["learner"]["method"] = "fixmatch"  # as files were written before there could be several
    (root / FILE).write_text(yaml.safe_dump(data))
    assert Workspace.open(root).settings.learner.methods == ("fixmatch",)


def test_several_methods_come_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["lion", "leaf", "remop+fixmatch"]
    root = Workspace.create(tmp_path / "w", taxonomy.FERPLUS, learner={"methods": methods}).root
    assert Workspace.open(root).settings.learner.methods == tuple(methods)
    monkeypatch.setenv("ANNOTATOR_LEARNER__METHODS", '["leaf", "lion"]')
    assert Workspace.open(root).settings.learner.methods == ("leaf", "lion")


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Workspace.create(tmp_path / "w", taxonomy.FERPLUS).root
    monkeypatch.setenv("ANNOTATOR_SERVER__PORT", "4321")
    assert Workspace.open(root).settings.server.port == 4321


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(WorkspaceError, match="not an empty folder"):
        Workspace.create(tmp_path, taxonomy.FERPLUS)
    with pytest.raises(WorkspaceError, match="annotator init"):
        Workspace.open(tmp_path)


@given(SLUGS)
def test_every_class_has_a_key_of_its_own_that_no_action_uses(slugs: list[str]) -> None:
    keys = [c.key for c in taxonomy.custom("mine", slugs).classes]
    assert len(set(keys)) == len(slugs)
    assert not set(keys) & taxonomy.RESERVED_KEYS


@given(SLUGS, st.data())
def test_masks_have_one_bit_per_class(slugs: list[str], data: st.DataObject) -> None:
    built = taxonomy.custom("mine", slugs)
    chosen = data.draw(st.lists(st.sampled_from(slugs), unique=True))
    assert built.mask(chosen) == sum(1 << slugs.index(s) for s in chosen)
    assert built.check(chosen) == tuple(s for s in slugs if s in chosen)


@pytest.mark.parametrize(
    ("slugs", "words"),
    [
        (["one"], "1 classes"),
        (["a", "a"], "twice"),
        (["a", "Big Word"], "Big Word"),
        ([f"c{i}" for i in range(31)], "31"),
    ],
)
def test_malformed_classes_are_named(slugs: list[str], words: str) -> None:
    with pytest.raises(TaxonomyError, match=words):
        taxonomy.custom("mine", slugs)


def test_classes_come_from_a_file_of_either_form(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("calm\npain\n\ntense\n")
    (tmp_path / "mapping.yaml").write_text("classes: [calm, pain, tense]\n")
    assert taxonomy.load(str(tmp_path / "plain.txt")).slugs == ("calm", "pain", "tense")
    assert taxonomy.load(str(tmp_path / "mapping.yaml")).slugs == ("calm", "pain", "tense")
    with pytest.raises(TaxonomyError, match="nowhere"):
        taxonomy.load("nowhere")


def test_the_public_class_orders_are_those_of_the_data_sets() -> None:
    assert taxonomy.RAFDB.slugs == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    assert taxonomy.FERPLUS.slugs[5:] == ("disgust", "fear", "contempt")
    assert Settings().taxonomy == taxonomy.FERPLUS
