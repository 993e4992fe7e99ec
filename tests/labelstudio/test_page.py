"""People label with our configuration in Label Studio's page: keys, one press and submit; what it stores is read."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from annotator.labelstudio.config.generated import generate, own_mapping
from annotator.labelstudio.config.results import Said, parse_result, prediction
from annotator.taxonomy import FERPLUS
from tests.ingest.builders import encoded, picture
from tests.labelstudio.studio import Studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OWN = own_mapping(FERPLUS)


def _press(*keys: str) -> Callable[[Page], None]:
    return lambda page: [page.keyboard.press(key) for key in keys] and None


def _submit(page: Page) -> None:
    page.get_by_role("button", name="Submit").first.click()


def _comment(page: Page) -> None:
    page.get_by_placeholder("Comment").fill("two  people <b>")
    _submit(page)


def _unpick_and_comment(page: Page) -> None:
    page.keyboard.press("4")
    for key in ("Shift+1", "Shift+4"):
        page.keyboard.press(key)
    _comment(page)


def _rate(page: Page) -> None:
    page.keyboard.press("Shift+7")
    page.locator(".ant-rate-star").nth(2).click()
    _submit(page)


def _skip(page: Page) -> None:
    page.keyboard.press("3")
    page.get_by_role("button", name="Skip").first.click()


# Every face comes with the prediction: sadness, or sadness and neutral.
DEEDS: list[tuple[Callable[[Page], None], Said]] = [
    (_press("Control+Enter"), Said("label", ("sadness",))),
    (_press("7", "Control+Enter"), Said("label", ("fear",))),
    (_press("u", "Control+Enter"), Said("unusable")),
    (_press("Shift+3", "Control+Enter"), Said("candidates", ("neutral", "surprise", "sadness"))),
    (_rate, Said("candidates", ("neutral", "sadness", "fear"), 0.6)),
    (_comment, Said("label", ("sadness",), None, "two  people <b>")),
    (_unpick_and_comment, Said("flag", (), None, "two  people <b>")),
    (_skip, Said("skip")),
]


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_what_the_page_stores_is_what_people_meant(studio: Studio) -> None:
    suggested = prediction(
        OWN,
        FERPLUS,
        candidates=[{"class": "sadness", "prob": 0.41}, {"class": "neutral", "prob": 0.38}],
        score=0.1,
        model_version="v1",
    )
    with studio.server() as server:
        project = server.create_project("by hand", generate(FERPLUS))["id"]
        (upload,) = server.upload(project, [("face.png", encoded(picture(1)), "image/png")])
        task = {"data": {"image": upload[1], "reason": "Why this face"}, "predictions": [suggested]}
        tasks = server.import_tasks(project, [task] * len(DEEDS))
    with ThreadPoolExecutor(1) as thread:  # Playwright allows one driver in a thread
        thread.submit(_label, studio, project).result()
    stored = {a["task"]: a for a in studio.annotations(project)}
    said = [parse_result(stored[t]["result"], stored[t]["was_cancelled"], OWN, FERPLUS) for t in sorted(tasks)]
    assert said == [meant for _, meant in DEEDS]


def _label(studio: Studio, project: int) -> None:
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"{studio.url}/user/login/")
        page.fill("input[name=email]", studio.admin.email)
        page.fill("input[name=password]", studio.admin.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        page.goto(f"{studio.url}/projects/{project}/data?labeling=1")
        for number, (deed, _) in enumerate(DEEDS):
            expect(page.get_by_text("Why this face")).to_be_visible(timeout=30_000)
            expect(page.locator("input[type=radio]:checked, input[type=checkbox]:checked")).to_have_count(3)
            if number == 0:
                _see_that_the_face_is_large(page)
            with page.expect_response(lambda answer: answer.request.method == "POST" and "annotations" in answer.url):
                deed(page)
            page.wait_for_timeout(400)


def _see_that_the_face_is_large(page: Page) -> None:
    """Both the face, at 300 pixels or more, and the button are on a laptop's screen without scrolling."""
    box = (
        page.locator("img[alt=LS]").or_(page.locator("[class*=image] canvas, [class*=image] img")).first.bounding_box()
    )
    button = page.get_by_role("button", name="Submit").first.bounding_box()
    assert box is not None
    assert button is not None
    assert min(box["width"], box["height"]) >= 300
    assert max(box["y"] + box["height"], button["y"] + button["height"]) <= 720
