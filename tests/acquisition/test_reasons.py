"""What people read beside a face."""

import numpy as np
import pytest

from annotator.acquisition.reasons import explain
from annotator.records import ARMS, Arm, Sight
from annotator.taxonomy import FERPLUS

PROBS = np.array([0.02, 0.02, 0.40, 0.05, 0.08, 0.06, 0.35, 0.02], dtype=np.float32)
FEAR_OR_SURPRISE = FERPLUS.mask(["fear", "surprise"])


def test_two_candidates_become_a_question() -> None:
    reason = explain("uncertain", FERPLUS, probs=PROBS, candidates=FEAR_OR_SURPRISE)
    assert reason.question == "Surprise or fear?"
    assert "surprise 40 %" in reason.sentence
    assert "fear 35 %" in reason.sentence


def test_a_doubted_label_is_named_with_what_the_picture_shows() -> None:
    reason = explain(
        "review", FERPLUS, probs=PROBS, candidates=FERPLUS.mask(["anger", "surprise"]), given=FERPLUS.index("anger")
    )
    assert reason.sentence == "The label says anger; the picture looks like surprise."
    assert reason.question == "The label says anger. Keep?"


def test_a_review_names_what_was_seen() -> None:
    def said(seen: Sight) -> str:
        doubt = {"candidates": FERPLUS.mask(["anger", "surprise"]), "given": FERPLUS.index("anger")}
        return explain("review", FERPLUS, probs=PROBS, seen=int(seen), **doubt).sentence  # type: ignore[arg-type]

    start = "The label says anger; the picture looks like surprise"
    assert said(Sight.DOUBT) == f"{start}."
    assert said(Sight.DOUBT | Sight.TWO_READINGS) == f"{start}, and two readings of it disagree."
    far = "it lies far from other faces of anger"
    assert said(Sight.OUTLIER) == f"{start}, and {far}."
    assert said(Sight.OUTLIER | Sight.TWO_READINGS) == f"{start}, and two readings of it disagree, and {far}."


def test_open_sets_are_told_where_suggestions_are() -> None:
    told = "in training several expressions stayed possible."
    for arm in ("uncertain", "coverage", "quota"):
        sentence = explain(arm, FERPLUS, probs=PROBS, candidates=FEAR_OR_SURPRISE, seen=int(Sight.OPEN_SET)).sentence
        assert sentence.endswith(told)
    blind = explain("random", FERPLUS, probs=PROBS, candidates=FEAR_OR_SURPRISE, seen=int(Sight.OPEN_SET), blind=True)
    assert told not in blind.sentence


def test_a_disputed_face_says_that_people_disagree() -> None:
    reason = explain("review", FERPLUS, probs=PROBS, candidates=FEAR_OR_SURPRISE)
    assert reason.sentence.startswith("People disagree")


@pytest.mark.parametrize("arm", ARMS)
def test_a_blind_item_names_no_class(arm: Arm) -> None:
    reason = explain(arm, FERPLUS, probs=PROBS, candidates=FEAR_OR_SURPRISE, given=2, blind=True)
    said = f"{reason.sentence} {reason.question}".lower()
    assert not any(c.name.lower() in said for c in FERPLUS.classes)


@pytest.mark.parametrize("mode", ["coverage", "import order"])
def test_without_a_model_no_class_is_named(mode: str) -> None:
    reason = explain("coverage", FERPLUS, mode=mode, probs=PROBS, candidates=FEAR_OR_SURPRISE)
    assert "fear" not in reason.sentence
    assert reason.question == "Which expression?"
