"""Our configuration is one that Label Studio takes, and of an existing one nothing is guessed."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.errors import InputError, TaxonomyError
from annotator.labelstudio.config.generated import Mapping, generate, own_mapping, read_config
from annotator.labelstudio.config.results import Said, parse_result, prediction, to_result
from annotator.taxonomy import AFFECTNET7, BUILTIN, FERPLUS, Taxonomy, custom
from tests.labelstudio.studio import Studio

SLUGS = st.lists(st.from_regex(r"[a-z][a-z0-9_-]{0,7}", fullmatch=True), min_size=2, max_size=20, unique=True)


def config(*controls: str, image: str = '<Image name="img" value="$photo"/>') -> str:
    return f"<View>{image}{''.join(controls)}</View>"


def choices(name: str, *words: str, to: str = "img", **attributes: str) -> str:
    more = "".join(f' {key}="{value}"' for key, value in attributes.items())
    inner = "".join(f'<Choice value="{word}"/>' for word in words)
    return f'<Choices name="{name}" toName="{to}"{more}>{inner}</Choices>'


@pytest.mark.parametrize("name", BUILTIN)
def test_our_own_configuration_says_everything(name: str) -> None:
    taxonomy = BUILTIN[name]
    mapping, problems = read_config(generate(taxonomy), taxonomy)
    assert problems == []
    assert mapping == own_mapping(taxonomy)
    assert (mapping.data_key, mapping.more_keys, mapping.others) == ("image", ("reason",), ())
    assert mapping.candidates is not None
    assert mapping.unusable is not None
    for slug in taxonomy.slugs:
        assert mapping.expression.choice(slug) == mapping.candidates.choice(slug) == slug
    assert not mapping.expression.multiple
    assert mapping.candidates.multiple
    assert Mapping.from_dict(json.loads(json.dumps(mapping.as_dict()))) == mapping


@given(SLUGS)
def test_every_taxonomy_has_a_configuration_of_its_own(slugs: list[str]) -> None:
    taxonomy = custom("own", [s for s in slugs if s != "unusable"] or ["a", "b"]) if len(slugs) > 2 else AFFECTNET7
    mapping, problems = read_config(generate(taxonomy), taxonomy)
    assert problems == []
    assert mapping.expression.values == {slug: slug for slug in taxonomy.slugs}
    assert len(mapping.expression.titles) == len(taxonomy.slugs)


def test_classes_that_look_alike_stay_apart() -> None:
    taxonomy = custom("alike", ["a-b", "a_b", "b"])
    mapping, _ = read_config(generate(taxonomy), taxonomy)
    assert mapping.expression.values == {"a-b": "a-b", "a_b": "a_b", "b": "b"}
    assert mapping.expression.titles == {"A b (a-b)": "a-b", "A b (a_b)": "a_b", "B": "b"}


def test_an_existing_configuration_is_read_by_its_words() -> None:
    xml = config(
        choices("gender", "Male", "Female"),
        '<View><Header value="$title"/>' + choices("emotion", "Happy", "SAD", "Angry", "Surprised", "Meh") + "</View>",
        choices("also", "happiness", "fear", choice="multiple"),
        choices("quality", "Good", "No face"),
        '<TextArea name="remarks" toName="img"/><Rating name="certainty" toName="img" maxRating="3"/>',
    )
    mapping, problems = read_config(xml, FERPLUS)
    assert mapping.expression.name == "emotion"
    assert mapping.expression.values == {
        "Happy": "happiness",
        "SAD": "sadness",
        "Angry": "anger",
        "Surprised": "surprise",
    }
    assert mapping.expression.others == ("Meh",)
    assert (mapping.image, mapping.data_key, mapping.more_keys) == ("img", "photo", ("title",))
    assert mapping.candidates is not None
    assert mapping.candidates.name == "also"
    assert mapping.unusable is not None
    assert mapping.unusable.values == {"No face": "unusable"}
    assert mapping.comment is not None
    assert mapping.comment.name == "remarks"
    assert mapping.confidence is not None
    assert mapping.confidence.max == 3
    assert mapping.others == ("gender",)
    told = "\n".join(problems)
    for sentence in (
        "'emotion' has no choice for neutral, disgust, fear, contempt",
        "'also' has no choice for neutral, surprise, sadness, anger, disgust, contempt",
        "choices of 'emotion' are no class, answers with them are set aside: 'Meh'",
        "$title",
    ):
        assert sentence in told


def test_what_is_missing_is_said() -> None:
    mapping, problems = read_config(config(choices("e", *FERPLUS.slugs)), FERPLUS)
    assert (mapping.candidates, mapping.unusable, mapping.comment, mapping.confidence) == (None, None, None, None)
    assert [p.split(":")[0] for p in problems] == [
        "no control takes several classes",
        "no choice says that a picture is unusable",
        "no text area takes a comment",
        "no rating is called confidence",
    ]


def test_a_multiple_choice_alone_gives_classes_and_sets() -> None:
    mapping, _ = read_config(config(choices("e", *FERPLUS.slugs, "unusable", choice="multiple")), FERPLUS)
    assert mapping.candidates == mapping.unusable == mapping.expression
    for said in (Said("label", ("fear",)), Said("candidates", ("anger", "fear")), Said("unusable")):
        assert parse_result(to_result(said, mapping, FERPLUS), False, mapping, FERPLUS) == said


def test_the_control_with_the_most_classes_is_taken_and_the_other_left_alone() -> None:
    xml = config(choices("first", "happy", "sad"), choices("second", "happy", "sad", "fear"))
    mapping, problems = read_config(xml, FERPLUS)
    assert mapping.expression.name == "second"
    assert "control 'first' names 2 classes, too, and is left alone" in problems


def test_a_person_may_say_what_a_choice_means() -> None:
    xml = config(choices("e", "Calm", "Joy", "Sad", "Weird"))
    assert read_config(xml, FERPLUS)[0].expression.values == {"Joy": "happiness", "Sad": "sadness"}
    mapping, _ = read_config(xml, FERPLUS, {"calm": "neutral", "Weird": "unusable"})
    assert mapping.expression.values == {
        "Calm": "neutral",
        "Joy": "happiness",
        "Sad": "sadness",
        "Weird": "unusable",
    }
    assert mapping.unusable == mapping.expression
    with pytest.raises(InputError, match="has no choice 'Bored'"):
        read_config(xml, FERPLUS, {"Bored": "neutral"})
    with pytest.raises(TaxonomyError, match="unknown class 'boredom'"):
        read_config(xml, FERPLUS, {"Calm": "boredom"})


def test_a_choice_with_two_meanings_has_none() -> None:
    xml = config(
        '<Choices name="e" toName="img"><Choice value="Sad" alias="happiness"/><Choice value="Fear"/></Choices>'
    )
    mapping, problems = read_config(xml, FERPLUS)
    assert mapping.expression.values == {"Fear": "fear"}
    assert mapping.expression.meaning("Sad") is None
    assert any("may mean happiness or sadness" in p for p in problems)
    same = config(
        '<Choices name="e" toName="img"><Choice value="Sad" alias="x"/><Choice value="Fear" alias="x"/></Choices>'
    )
    with pytest.raises(InputError, match="no <Choices>"):
        read_config(same, FERPLUS)


@pytest.mark.parametrize(
    ("control", "sentence"),
    [
        (choices("e", "happy", "sad", perRegion="true"), "about a region"),
        (choices("e", "happy", "sad", value="$options"), "come with each task"),
        (choices("e", "happy", "sad", to="txt"), "'txt', which is not an image"),
        (choices("e", "happy", "sad", to="img,more"), "'img,more', which is not an image"),
        (choices("e", "happy", "sad", to="more"), "'more', which is not an image with one picture"),
        ('<Choices name="e" toName="img"><Choice value="happy"><Choice value="very"/></Choice></Choices>', "nested"),
    ],
)
def test_controls_that_do_not_speak_of_the_picture_are_left_alone(control: str, sentence: str) -> None:
    objects = '<Text name="txt" value="$text"/><Image name="more" valueList="$photos"/>'
    with pytest.raises(InputError, match="no <Choices>"):
        read_config(config(objects, control), FERPLUS)
    mapping, problems = read_config(config(objects, control, choices("good", "happy")), FERPLUS)
    assert mapping.expression.name == "good"
    assert any("'e' is left alone" in p and sentence in p for p in problems), problems


def test_further_objects_and_required_controls_are_named() -> None:
    xml = config(
        choices("e", "happy", "sad"),
        choices("v", "smooth", "jerky", to="clip"),
        '<Image name="second" value="$b"/><Video name="clip" value="$video"/>',
        '<Number name="age" toName="img" required="true"/>',
    )
    mapping, problems = read_config(xml, FERPLUS)
    told = "\n".join(problems)
    for sentence in (
        "'second' stays empty",
        "Video 'clip' is no image",
        "control 'age' (Number) must be answered",
        "$b, $video",
    ):
        assert sentence in told
    assert mapping.more_keys == ("b", "video")


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE v [<!ENTITY x "boom">]><View>&x;</View>',
        '<!DOCTYPE v SYSTEM "http://127.0.0.1:1/x.dtd"><View/>',
        '<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>',
        "<View>&undeclared;</View>",
        "<View>",
        "",
        "no xml",
        "<View>\ud800</View>",
        "<View/>" + " " * 1_000_001,
    ],
)
def test_no_xml_and_no_document_type(xml: str) -> None:
    with pytest.raises(InputError):
        read_config(xml, FERPLUS)


def test_deep_nesting_does_no_harm() -> None:
    deep = "<View>" * 60_000 + "</View>" * 60_000
    began = time.perf_counter()
    with pytest.raises(InputError, match="no <Choices>"):
        read_config(deep, FERPLUS)
    assert time.perf_counter() - began < 5


@settings(max_examples=300)
@given(st.text(alphabet='<>/="&$ViewChosanmtNImg \n', max_size=200))
def test_garbage_is_refused_in_words(text: str) -> None:
    with pytest.raises(InputError):
        read_config(text, FERPLUS)


NASTY = Taxonomy(
    "nasty",
    1,
    tuple(
        type(FERPLUS.classes[0])(slug, name, "#000000", key)
        for slug, name, key in (("a", '<b> & "q"', "1"), ("b", "Üñí 😀 's", "2"), ("c", "c=$x", "3"))
    ),
)


@pytest.mark.parametrize(
    "taxonomy", [FERPLUS, NASTY, custom("many", [f"c{i}" for i in range(25)])], ids=lambda t: t.name
)
def test_label_studio_takes_it_and_keeps_what_it_says(studio: Studio, taxonomy: Taxonomy) -> None:
    mapping = own_mapping(taxonomy)
    first, second = taxonomy.slugs[:2]
    suggested = prediction(
        mapping,
        taxonomy,
        candidates=[{"class": second, "prob": 0.5}, {"class": first, "prob": 0.3}],
        score=0.25,
        model_version="v1",
    )
    data = {"image": "x.png", "reason": "because <b>"}
    with studio.server() as server:
        project = server.create_project(f"classes {taxonomy.name}", generate(taxonomy))
        (task,) = server.import_tasks(project["id"], [{"data": data}])
        assert server.import_predictions(project["id"], [{"task": task, **suggested}]) == 1
        answers = [
            Said("label", (first,), 0.6, "ün <b> & 😀"),
            Said("candidates", (first, second), 0.2),
            Said("unusable", note="blurred"),
            Said("flag", note="who is that?\nreally"),
        ]
        for said in answers:
            server.create_annotation(task, {"result": to_result(said, mapping, taxonomy)})
        mapping, problems = read_config(server.project(project["id"])["label_config"], taxonomy)
    assert problems == []
    stored = [a["result"] for a in studio.annotations(project["id"])]
    assert [parse_result(result, False, mapping, taxonomy) for result in stored] == answers
