"""What the desk suggests, and where it must not suggest anything."""

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, expect

from annotator.records import Annotation
from annotator.settings import Workspace
from annotator.taxonomy import FERPLUS
from tests.e2e.hands import Hands
from tests.e2e.serving import Site
from tests.e2e.suggestions import publish_suggestions

WIDTH, HEIGHT = 390, 844
PHONE: dict[str, object] = {
    "viewport": {"width": WIDTH, "height": HEIGHT},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


@pytest.fixture
def faces_workspace(make: Callable[..., Workspace]) -> Workspace:
    """Make a workspace whose faces have been read: unsure, review, blind, coverage in turn."""
    workspace = make()
    publish_suggestions(workspace)
    return workspace


def stored(site: Site) -> list[Annotation]:
    """Return everything people have answered, in order."""
    return [a for a in site.store.decisions.list() if a.user_id is not None]


def places(hands: Hands) -> dict[str, tuple[float, float]]:
    """Return where each class's button is."""
    boxes = {c.slug: hands.part(f"choice-{c.slug}").bounding_box() for c in FERPLUS.classes}
    return {slug: (box["x"], box["y"]) for slug, box in boxes.items() if box}


def test_candidates_have_second_keys_and_every_class_keeps_its_place(site: Site, hands: Hands) -> None:
    expect(hands.part("question")).to_have_text("Fear or surprise?")
    expect(hands.part("reason")).to_contain_text("model 00001.1")
    expect(hands.part("candidate-fear")).to_contain_text("0.46")
    before = places(hands)
    assert len(before) == 8
    hands.rest()
    hands.press("j")  # the first suggestion; now a review
    expect(hands.part("question")).to_have_text("The label says anger. Keep?")
    expect(hands.part("choice-anger")).to_contain_text("label")
    assert places(hands) == before
    hands.rest()
    hands.press("Enter")  # keeps the label; now a blind face
    assert places(hands) == before
    hands.rest()
    hands.press("3")
    hands.rest()
    hands.press("n")  # neither of what is highlighted
    hands.wait_until_sent()
    said = [(a.kind, a.classes, a.arm, a.blind, len(a.suggestions)) for a in stored(site)]
    assert said == [
        ("label", ("fear",), "uncertain", False, 2),
        ("label", ("anger",), "review", False, 2),
        ("label", ("surprise",), "random", True, 0),
        ("not", ("surprise", "fear"), "coverage", False, 2),
    ]


def test_a_blind_face_shows_no_suggestion_and_no_neighbours(site: Site, hands: Hands) -> None:
    asked: list[str] = []
    hands.page.on("request", lambda request: asked.append(request.url))
    for key in "12":
        hands.rest()
        hands.press(key)
    hands.rest(1.0)
    face = hands.face
    expect(hands.page.locator(".desk-quiet")).to_have_text("First look: nothing is suggested.")
    assert hands.page.locator(".desk-candidate:visible, .desk-choice.candidate, .desk-choice.given").count() == 0
    assert not any("neighbours" in url and face in url for url in asked)


def test_undone_answers_come_back_with_their_suggestions(site: Site, hands: Hands) -> None:
    hands.rest()
    first = hands.press("7")
    hands.page.keyboard.press("z")
    hands.page.wait_for_selector(f"[data-testid=face][data-image-id='{first}']")
    expect(hands.part("question")).to_have_text("You said: fear. And now?")
    hands.rest()
    hands.press("k")
    hands.wait_until_sent()
    answers = stored(site)
    assert [(a.kind, a.classes) for a in answers] == [("label", ("fear",)), ("undo", ()), ("label", ("surprise",))]
    assert answers[2].arm == "uncertain"
    assert not answers[2].late


def test_hooks_are_unique_and_every_control_has_a_name(hands: Hands) -> None:
    names = hands.page.eval_on_selector_all("[data-testid]", "all => all.map(e => e.dataset.testid)")
    assert len(names) == len(set(names))
    for hook in ("face", "undo", "skip", "unusable", "status", "several", "none", "flag", "counter", "reason"):
        assert hook in names
    assert {f"choice-{c.slug}" for c in FERPLUS.classes} <= set(names)
    unnamed = hands.page.evaluate(
        "[...document.querySelectorAll('#desk button')]"
        ".filter(b => b.checkVisibility() && !(b.ariaLabel || b.innerText.trim())).length"
    )
    assert unnamed == 0


def test_a_phone_has_thumb_sized_buttons_in_the_lower_half(
    site: Site, open_context: Callable[..., BrowserContext]
) -> None:
    hands = Hands.sit_down(open_context(**PHONE).new_page(), site.url)
    hands.rest(0.5)
    hooks = [f"choice-{c.slug}" for c in FERPLUS.classes] + ["skip", "unusable", "none", "several", "flag", "undo"]
    for hook in [*hooks, "candidate-fear", "candidate-surprise"]:
        box = hands.part(hook).bounding_box()
        assert box is not None
        assert box["height"] >= 48
        assert box["y"] >= HEIGHT / 2
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= WIDTH
        assert box["y"] + box["height"] <= HEIGHT
    face = hands.part("face").bounding_box()
    assert face is not None
    assert face["x"] >= 0
    assert face["x"] + face["width"] <= WIDTH
    first = hands.face
    hands.part("candidate-fear").tap()
    hands.wait_for_other(first)
    hands.wait_until_sent()
    assert [(a.image_id, a.classes) for a in stored(site)] == [(first, ("fear",))]


def test_dark_mode_is_kept_and_readable(site: Site, hands: Hands) -> None:
    hands.page.get_by_role("button", name="Light or dark").click()
    hands.page.reload()
    hands.page.wait_for_selector("body.dark [data-testid=face]:not([hidden])")
    contrast = """name => {
      const light = css => {
        const [r, g, b] = css.match(/[0-9.]+/g).map(Number)
          .map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const style = part => getComputedStyle(document.querySelector(part));
      const pair = [light(style(name).color), light(style('#desk').backgroundColor)];
      return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    }"""
    for name in (".desk-question", ".desk-reason", ".desk-status", ".desk-choice", ".desk-count"):
        assert hands.page.evaluate(contrast, name) >= 4.5
    hands.page.get_by_role("button", name="Light or dark").click()
    for name in (".desk-question", ".desk-reason", ".desk-status", ".desk-choice", ".desk-count"):
        assert hands.page.evaluate(contrast, name) >= 4.5
