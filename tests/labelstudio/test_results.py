"""Results are read strictly: exactly one answer, or the reason why not; what goes out comes back the same."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from annotator.errors import InputError
from annotator.labelstudio.config.generated import Mapping, own_mapping, read_config
from annotator.labelstudio.config.results import (
    MalformedResultError,
    Said,
    canonical,
    expressed,
    parse_result,
    prediction,
    to_result,
)
from annotator.records import Answer
from annotator.store.answers import check_answer
from annotator.taxonomy import FERPLUS
from tests.labelstudio.studio import rated, said, wrote

OWN = own_mapping(FERPLUS)
MULTIPLE = read_config(
    '<View><Image name="i" value="$i"/><Choices name="e" toName="i" choice="multiple">'
    + "".join(f'<Choice value="{slug.upper()}"/>' for slug in (*FERPLUS.slugs, "unusable"))
    + "</Choices></View>",
    FERPLUS,
)[0]
SINGLE = read_config(
    '<View><Image name="i" value="$i"/><Choices name="e" toName="i"><Choice value="Happy"/><Choice value="Sad"/>'
    '<Choice value="Meh"/></Choices><Choices name="quality" toName="i"><Choice value="good"/><Choice value="no face"/>'
    '</Choices><Choices name="gender" toName="i"><Choice value="f"/><Choice value="m"/></Choices></View>',
    FERPLUS,
)[0]


def read(*items: Any, mapping: Mapping = OWN, was_cancelled: bool = False) -> Said:
    return parse_result(list(items), was_cancelled, mapping, FERPLUS)


def left(item: dict[str, Any], origin: str = "prediction") -> dict[str, Any]:
    """Mark an item as the page does: filled in by a prediction and left as it was, or changed."""
    return item | {"origin": origin, "score": 0.4}


CLASSES = st.lists(st.sampled_from(FERPLUS.slugs), min_size=1, max_size=7, unique=True).map(
    lambda slugs: FERPLUS.check(tuple(slugs))
)
NOTES = st.none() | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=2000
).filter(lambda text: bool(text.strip()))
STARS = st.none() | st.integers(1, 5).map(lambda stars: stars / 5)


@st.composite
def answers(draw: st.DrawFn) -> Said:
    """Every answer that our own controls can say."""
    kind = draw(st.sampled_from(["label", "candidates", "unusable", "flag", "skip"]))
    classes = draw(CLASSES)
    note = draw(NOTES)
    if kind == "skip":
        return Said("skip", note=note)
    if kind == "flag":
        assume(note)
    if kind in ("label", "candidates"):
        kind = "label" if len(classes) == 1 else "candidates"
        return Said(kind, classes, draw(STARS), note)
    return Said(kind, (), draw(STARS), note)


@given(answers())
def test_what_goes_out_comes_back(given_answer: Said) -> None:
    result = json.loads(json.dumps(to_result(given_answer, OWN, FERPLUS)))
    back = parse_result(result, given_answer.kind == "skip", OWN, FERPLUS)
    assert back == given_answer == expressed(given_answer, OWN, FERPLUS)
    assert canonical(back) == canonical(given_answer)


@given(CLASSES, st.floats(0, 1))
def test_what_controls_cannot_say_goes_out_as_near_as_they_can(classes: tuple[str, ...], confidence: float) -> None:
    back = expressed(Said("not", classes, confidence), OWN, FERPLUS)
    others = tuple(slug for slug in FERPLUS.slugs if slug not in classes)
    assert (back.kind, back.classes) == ("label" if len(others) == 1 else "candidates", others)
    assert back.confidence is not None
    assert abs(back.confidence - max(confidence, 0.2)) <= 0.1 + 1e-9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(FERPLUS.slugs),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "from_name": st.sampled_from(["expression", "candidates", "unusable", "comment", "confidence", "x"]) | JSON,
        "to_name": st.sampled_from(["image", "img"]) | JSON,
        "type": st.sampled_from(["choices", "textarea", "rating", "relation"]) | JSON,
        "value": st.fixed_dictionaries(
            {},
            optional={
                "choices": st.lists(st.sampled_from([*FERPLUS.slugs, "Fear", "unusable", "joy"]), max_size=9) | JSON,
                "text": JSON,
                "rating": st.integers(-1, 7) | JSON,
            },
        )
        | JSON,
        "origin": st.sampled_from(["prediction", "manual"]) | JSON,
    },
)
LIKELY = st.builds(
    lambda name, value, origin: (
        {"from_name": name, "to_name": "image", "value": value, "origin": origin}
        | {"type": {"comment": "textarea", "confidence": "rating"}.get(name, "choices")}
    ),
    st.sampled_from(["expression", "candidates", "unusable", "comment", "confidence"]),
    st.fixed_dictionaries({"choices": st.lists(st.sampled_from([*FERPLUS.slugs, "unusable"]), max_size=9)})
    | st.fixed_dictionaries({"text": st.lists(st.text(max_size=5), max_size=2) | JSON})
    | st.fixed_dictionaries({"rating": st.integers(-1, 7) | JSON}),
    st.sampled_from(["prediction", "prediction-changed", "manual"]),
)


@settings(max_examples=600)
@given(st.lists(LIKELY | ITEMS | JSON, max_size=4) | JSON, st.booleans(), st.sampled_from([OWN, MULTIPLE, SINGLE]))
def test_garbage_is_malformed_or_an_answer_that_the_store_takes(
    result: object, was_cancelled: bool, mapping: Mapping
) -> None:
    try:
        answer = parse_result(result, was_cancelled, mapping, FERPLUS)
    except MalformedResultError:
        return
    check_answer(Answer("c", "i", answer.kind, answer.classes, confidence=answer.confidence, note=answer.note), FERPLUS)
    assert answer.classes == FERPLUS.check(answer.classes)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "says nothing"),
        ([rated("confidence", 3)], "says nothing"),
        ([wrote("comment", " \n")], "says nothing"),
        ([said("expression")], "says nothing"),
        ([said("expression", "joy")], "'joy' of 'expression' is no class"),
        ([said("expression", "Fearful")], "is no class"),
        ([said("unusable", "broken")], "is no class"),
        ([said("expression", "fear", "anger")], "two classes in a single choice: anger and fear"),
        ([said("candidates", *FERPLUS.slugs)], "every class is ticked"),
        ([said("expression", "fear"), said("unusable", "unusable")], "unusable and fear at once"),
        ([said("candidates", "fear", "anger"), said("unusable", "unusable")], "unusable and anger and fear at once"),
        ([said("expression", "fear"), said("candidates", "anger", "sadness")], "the class is fear, but the set is"),
        ([said("expression", "fear"), said("expression", "fear")], "answered twice"),
        ([said("expression", "fear", to_name="other")], "gives choices of 'image'"),
        ([said("expression", "fear") | {"type": "labels"}], "this item is 'labels'"),
        ([said("emotion", "fear")], "'emotion' is not one of the project's, but names a class"),
        ([said("emotion", "Happy")], "names a class"),
        ([said("expression", "fear") | {"value": {"choices": ["fear"], "x": 3}}], "part of the picture ('x')"),
        ([said("expression", "fear") | {"value": {"choices": [["fear"]]}}], "not a list of words"),
        ([said("expression", "fear") | {"value": {"choices": "fear"}}], "not a list of words"),
        ([said("expression", "fear") | {"value": {"text": "fear"}}], "has no value 'choices'"),
        ([said("expression", "fear"), rated("confidence", 6)], "6 is no number of stars"),
        ([said("expression", "fear"), rated("confidence", 2) | {"value": {"rating": 2.5}}], "no whole number"),
        ([said("expression", "fear"), rated("confidence", 2) | {"value": {"rating": True}}], "no number of stars"),
        ([said("expression", "fear"), wrote("comment", "x" * 2001)], "2001 characters"),
        ([said("expression", "fear"), wrote("comment", "a\0b")], "NUL"),
        (["fear"], "one item is str"),
        ([None], "one item is nothing"),
    ],
)
def test_what_is_malformed_says_why(items: list[Any], reason: str) -> None:
    with pytest.raises(MalformedResultError) as refused:
        read(*items)
    assert reason in str(refused.value)


@pytest.mark.parametrize("result", [None, {}, "[]", 3])
def test_a_result_is_a_list(result: object) -> None:
    with pytest.raises(MalformedResultError, match="a result is a list"):
        parse_result(result, False, OWN, FERPLUS)


def test_what_the_page_stores_is_read() -> None:
    """The items are those that Label Studio 1.23's page sent for these deeds, on a face with a prediction."""
    guess, guesses = said("expression", "sadness"), said("candidates", "sadness", "neutral")
    assert read(left(guess), left(guesses)) == Said("label", ("sadness",))
    changed = left(said("expression", "fear"), "prediction-changed")
    assert read(changed, left(guesses)) == Said("label", ("fear",))
    marked = said("unusable", "unusable") | {"origin": "manual"}
    assert read(left(guess), left(guesses), marked) == Said("unusable")
    commented = wrote("comment", "one two <b>") | {"origin": "manual"}
    assert read(left(guess), left(guesses), commented) == Said("label", ("sadness",), None, "one two <b>")
    ticked = left(said("candidates", "neutral", "sadness", "fear"), "prediction-changed")
    rating = rated("confidence", 2) | {"origin": "manual"}
    assert read(left(guess), ticked, rating) == Said("candidates", ("neutral", "sadness", "fear"), 0.4)
    assert read(changed, left(guesses), was_cancelled=True) == Said("skip")


def test_a_class_beside_a_set_that_has_it_wins() -> None:
    assert read(said("expression", "fear"), said("candidates", "fear", "anger")) == Said("label", ("fear",))
    assert read(said("candidates", "fear")) == Said("label", ("fear",))


def test_names_that_people_see_are_taken_for_their_choices() -> None:
    assert read(said("expression", "Fear"), said("candidates", "Fear", "anger", "fear")) == Said("label", ("fear",))


def test_a_skip_keeps_its_comment_and_nothing_else() -> None:
    note = wrote("comment", "too dark")
    assert read(said("expression", "fear"), note, was_cancelled=True) == Said("skip", note="too dark")
    assert read(said("expression", "no class"), was_cancelled=True) == Said("skip")
    assert parse_result(None, True, OWN, FERPLUS) == Said("skip")


def test_lines_of_a_comment_are_joined() -> None:
    assert read(wrote("comment", "") | {"value": {"text": ["one", " ", "two"]}}) == Said("flag", note="one\ntwo")
    assert read(wrote("comment", "") | {"value": {"text": "one"}}) == Said("flag", note="one")


def test_items_of_others_are_passed_over() -> None:
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    box = {"from_name": "box", "to_name": "image", "type": "rectangle", "value": {"x": 1, "y": 2}}
    assert read(said("expression", "fear"), relation, box, said("light", "dim")) == Said("label", ("fear",))
    known = replace(OWN, others=("second",))
    assert read(said("expression", "fear"), said("second", "anger"), mapping=known) == Said("label", ("fear",))


def test_choices_of_an_existing_control_that_are_no_class() -> None:
    happy = said("e", "Happy", to_name="i")
    assert read(happy, said("quality", "good", to_name="i"), mapping=SINGLE) == Said("label", ("happiness",))
    assert read(said("quality", "no face", to_name="i"), mapping=SINGLE) == Said("unusable")
    with pytest.raises(MalformedResultError, match="'Meh' of 'e' is no class"):
        read(said("e", "Meh", to_name="i"), mapping=SINGLE)
    with pytest.raises(MalformedResultError, match="'bad' of 'quality'"):
        read(happy, said("quality", "bad", to_name="i"), mapping=SINGLE)


@pytest.mark.parametrize(
    ("inexpressible", "reason"),
    [
        (Said("label", ("fear",)), "'e' of the project has no choice for fear"),
        (Said("candidates", ("fear", "anger")), "no control that says several classes"),
        (Said("not", ("fear",)), "no control that says several classes"),
        (Said("flag", note="x"), "no control for a comment"),
    ],
)
def test_what_a_project_cannot_say_is_not_sent(inexpressible: Said, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        to_result(inexpressible, SINGLE, FERPLUS)


def test_a_mapping_of_another_taxonomy_gives_no_unknown_class() -> None:
    strange = replace(OWN, expression=replace(OWN.expression, values={"fear": "boredom"}))
    with pytest.raises(MalformedResultError, match="unknown class 'boredom'"):
        read(said("expression", "fear"), mapping=strange)


CANDIDATES = [{"class": "sadness", "prob": 0.41}, {"class": "neutral", "prob": 0.38}]


def test_a_prediction_carries_class_set_and_scores() -> None:
    made = prediction(OWN, FERPLUS, candidates=CANDIDATES, score=0.25, model_version="loop-3.7")
    assert (made["score"], made["model_version"]) == (0.25, "loop-3.7")
    expression, candidates = made["result"]
    assert (expression["value"], expression["score"]) == ({"choices": ["sadness"]}, 0.41)
    assert (candidates["value"], candidates["score"]) == ({"choices": ["sadness", "neutral"]}, 0.79)
    assert read(*(left(item) for item in made["result"])) == Said("label", ("sadness",))


def test_a_prediction_without_a_model_or_for_a_blind_face_only_orders() -> None:
    for blind, candidates in ((True, CANDIDATES), (False, [])):
        made = prediction(OWN, FERPLUS, candidates=candidates, score=1.7, model_version="v", blind=blind)
        assert made == {"model_version": "v", "score": 1.0, "result": []}


def test_a_prediction_says_what_the_project_has_choices_for() -> None:
    made = prediction(SINGLE, FERPLUS, candidates=CANDIDATES, score=-1.0, model_version="v")
    assert [item["value"] for item in made["result"]] == [{"choices": ["Sad"]}]
    assert made["score"] == 0.0
    both = prediction(MULTIPLE, FERPLUS, candidates=CANDIDATES, score=float("nan"), model_version="v")
    assert [item["value"] for item in both["result"]] == [{"choices": ["SADNESS"]}]
    unknown = [{"class": "fear", "prob": 0.9}, *CANDIDATES]
    assert prediction(SINGLE, FERPLUS, candidates=unknown, score=0, model_version="v")["result"] == []
