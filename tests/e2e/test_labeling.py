"""Labeling in a real browser, by keys, as a person does."""

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from playwright.sync_api import BrowserContext, expect

from annotator.records import Annotation
from annotator.taxonomy import FERPLUS
from tests.e2e.hands import Hands
from tests.e2e.serving import Site

KEY_OF = {c.slug: c.key for c in FERPLUS.classes}
CLASS_OF = {c.key: c.slug for c in FERPLUS.classes}


def stored(site: Site) -> list[Annotation]:
    """Return everything people have answered, in order."""
    return [a for a in site.store.decisions.list() if a.user_id is not None]


def exported(site: Site) -> dict[str, str]:
    """Export with the command, beside the running server, and return image id to label."""
    out = site.workspace.root / f"labels-{time.monotonic_ns()}.csv"
    command = [sys.executable, "-m", "annotator", "export", str(site.workspace.root), str(out), "--format", "csv"]
    subprocess.run(command, check=True, capture_output=True)
    with out.open(encoding="utf-8", newline="") as file:
        return {row["image_id"]: row["label"] for row in csv.DictReader(file) if row["label"]}


def test_twenty_faces_by_keys_alone_with_two_undone(site: Site, hands: Hands) -> None:
    for index in range(20):
        hands.rest()
        hands.press(str(1 + index % 8))
    assert len(hands.typed) == 20
    last_two = list(hands.typed)[-2:]
    waiting = hands.face
    for image_id in reversed(last_two):
        hands.page.keyboard.press("Backspace")
        hands.page.wait_for_selector(f"[data-testid=face][data-image-id='{image_id}']")
        was = CLASS_OF[hands.typed.pop(image_id)]
        expect(hands.part(f"choice-{was}")).to_contain_text("you")
    hands.wait_until_sent()
    assert exported(site) == {image_id: CLASS_OF[key] for image_id, key in hands.typed.items()}
    assert len(hands.typed) == 18

    # The face that came back takes a new answer, then the faces that were called away return in their old order.
    hands.rest()
    hands.press("8")
    assert hands.face == last_two[1]
    hands.rest()
    hands.press("7")
    assert hands.face == waiting
    hands.wait_until_sent()
    assert exported(site) == {image_id: CLASS_OF[key] for image_id, key in hands.typed.items()}
    again = stored(site)[-2:]
    assert [a.image_id for a in again] == last_two
    assert not any(a.late or a.duplicate or a.mismatch for a in again)


def test_every_answer_carries_the_face_on_screen_its_lease_and_its_time(site: Site, hands: Hands) -> None:
    hands.rest(0.4)
    for key in "316":
        hands.rest()
        hands.press(key)
    hands.wait_until_sent()
    answers = stored(site)
    assert [a.image_id for a in answers] == list(hands.typed)
    assert all(a.lease_id and not a.late and not a.mismatch for a in answers)
    assert all(a.source == "ui" for a in answers)
    assert 400 <= (answers[0].duration_ms or 0) < 10_000
    assert len({a.client_id for a in answers}) == 3


def test_several_none_flag_unusable_and_skip_by_key(site: Site, hands: Hands) -> None:
    keyboard = hands.page.keyboard
    faces = []

    def answer(*keys: str, typed: str = "") -> None:
        hands.rest()
        before = hands.face
        for key in keys[:-1]:
            keyboard.press(key)
        keyboard.type(typed)
        keyboard.press(keys[-1])
        hands.wait_for_other(before)
        faces.append(before)

    answer("s", "3", "7", "Enter")
    answer("S", "4", "5", "5", "Enter")  # toggled off again: one class is left
    answer("s", "1", "2", "n")
    answer("u")
    answer("f", "Enter", typed="1 face too many: skip? u")
    answer(" ")
    hands.wait_until_sent()
    answers = stored(site)
    assert [a.image_id for a in answers] == faces
    assert [(a.kind, a.classes) for a in answers] == [
        ("candidates", ("surprise", "fear")),
        ("label", ("sadness",)),
        ("not", ("neutral", "happiness")),
        ("unusable", ()),
        ("flag", ()),
        ("skip", ()),
    ]
    assert answers[4].note == "1 face too many: skip? u"


def test_none_without_suggestions_asks_instead_of_answering(site: Site, hands: Hands) -> None:
    hands.rest()
    before = hands.face
    hands.page.keyboard.press("n")
    expect(hands.page.locator(".desk-hint")).to_contain_text("Nothing is suggested")
    hands.page.keyboard.press("j")
    expect(hands.page.locator(".desk-hint")).to_contain_text("No suggestion has that key")
    assert hands.face == before
    assert stored(site) == []


def test_keys_of_the_browser_and_of_open_fields_stay_theirs(site: Site, hands: Hands) -> None:
    hands.rest()
    before = hands.face
    for chord in ("Control+1", "Alt+3", "Control+u", "Tab", "ArrowDown"):
        hands.page.keyboard.press(chord)
    hands.page.keyboard.press("?")
    expect(hands.page.locator("dialog.desk-help")).to_be_visible()
    hands.page.keyboard.press("3")  # the list of keys is open: nothing is answered under it
    hands.page.keyboard.press("Escape")
    hands.page.keyboard.press("f")
    hands.page.keyboard.type("12")
    hands.page.keyboard.press("Escape")
    hands.rest(0.3)
    assert hands.face == before
    assert stored(site) == []


def test_buttons_answer_too_and_leave_the_keys_alone(site: Site, hands: Hands) -> None:
    hands.rest()
    first = hands.face
    hands.part("choice-anger").click()
    hands.wait_for_other(first)
    hands.rest()
    second = hands.press(" ")  # Space skips: the button that was clicked does not have it
    hands.rest()
    hands.part("undo").click()
    hands.page.wait_for_selector(f"[data-testid=face][data-image-id='{second}']")
    hands.wait_until_sent()
    assert [(a.image_id, a.kind, a.classes) for a in stored(site)] == [
        (first, "label", ("anger",)),
        (second, "skip", ()),
        (second, "undo", ()),
    ]


def test_fast_keys_label_only_faces_that_were_on_screen(site: Site, hands: Hands) -> None:
    hands.page.evaluate(
        """() => {
          window.painted = [];
          const note = () => {
            const id = document.querySelector('[data-testid=face]')?.dataset.imageId;
            if (id && painted.at(-1)?.id !== id) painted.push({ id, at: performance.now() });
            requestAnimationFrame(note);
          };
          note();
        }"""
    )
    hands.rest()
    keys = "12345678123456781234"
    for key in keys:
        hands.page.keyboard.press(key)
        time.sleep(0.05)
    hands.page.wait_for_function(f"document.querySelector('[data-testid=counter]').textContent === '{len(keys)} today'")
    hands.wait_until_sent()
    answers = stored(site)
    assert [a.classes[0] for a in answers] == [CLASS_OF[key] for key in keys]  # none lost, none out of order
    painted = hands.page.evaluate("painted")
    assert [a.image_id for a in answers] == [p["id"] for p in painted][: len(keys)]
    assert all((a.duration_ms or 0) >= 50 for a in answers)
    shown_for = [later["at"] - earlier["at"] for earlier, later in pairwise(painted)]
    assert min(shown_for) >= 45  # milliseconds: every face was really there before its key was used


def test_held_keys_can_be_taken_back(site: Site, hands: Hands) -> None:
    hands.rest()
    # Three presses in one task: the second and third come before any other face could be painted.
    hands.page.evaluate(
        """() => {
          for (const key of ['1', '2', '3', 'Escape'])
            document.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
        }"""
    )
    expect(hands.page.locator(".desk-hint")).to_contain_text("2 keys typed ahead taken back")
    hands.wait_until_sent()
    hands.rest(0.3)
    assert [a.classes for a in stored(site)] == [("neutral",)]


def test_a_key_held_down_answers_once(site: Site, hands: Hands) -> None:
    hands.rest()
    hands.page.keyboard.down("2")
    for _ in range(5):
        hands.page.keyboard.down("2")  # auto-repeat
        hands.rest(0.03)
    hands.page.keyboard.up("2")
    hands.rest(0.3)
    hands.wait_until_sent()
    assert len(stored(site)) == 1


def test_undo_reaches_answers_from_before_a_reload(site: Site, hands: Hands) -> None:
    hands.rest()
    first = hands.press("5")
    hands.wait_until_sent()
    hands.page.reload()
    hands.page.wait_for_selector("[data-testid=face]:not([hidden])")
    expect(hands.part("undo")).to_contain_text("(1)")
    hands.page.keyboard.press("z")
    hands.page.wait_for_selector(f"[data-testid=face][data-image-id='{first}']")
    expect(hands.part("choice-anger")).to_contain_text("you")
    hands.wait_until_sent()
    assert [a.kind for a in stored(site)] == ["label", "undo"]
    assert exported(site) == {}


def test_two_tabs_of_one_person_do_not_share_a_face(site: Site, open_context: Callable[..., BrowserContext]) -> None:
    context = open_context()
    one, two = (Hands.sit_down(context.new_page(), site.url) for _ in range(2))
    for _ in range(6):
        for hands in (one, two):
            hands.page.bring_to_front()
            hands.rest()
            assert one.face != two.face
            hands.press("1")
    one.wait_until_sent()
    answers = stored(site)
    assert len(answers) == len({a.image_id for a in answers}) == 12
