"""A person's hands at the desk: presses keys, and knows what was on screen when it did."""

import time
from dataclasses import dataclass, field

from playwright.sync_api import Locator, Page, expect

from tests.e2e.serving import PASSWORD

FACE = "[data-testid=face]:not([hidden])[data-image-id]:not([data-image-id=''])"
SETTLE_SECONDS = 15.0


@dataclass
class Hands:
    """One page. `typed` is what was answered: image id to key, in order."""

    page: Page
    url: str
    typed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def sit_down(cls, page: Page, url: str) -> "Hands":
        """Open the desk and wait for the first face."""
        page.goto(url)
        page.wait_for_selector(FACE)
        return cls(page, url)

    @classmethod
    def sign_in(cls, page: Page, url: str, name: str) -> "Hands":
        """Sign in on the page that asks for it, then wait for the first face."""
        page.goto(url)
        page.get_by_test_id("login-name").fill(name)
        page.get_by_test_id("login-password").fill(PASSWORD)
        page.get_by_test_id("login-submit").click()
        page.wait_for_selector(FACE)
        return cls(page, url)

    @property
    def face(self) -> str:
        """The image id on screen; empty when there is none."""
        return self.page.get_by_test_id("face").get_attribute("data-image-id") or ""

    def part(self, name: str) -> Locator:
        """Return the element with a data-testid."""
        return self.page.get_by_test_id(name)

    def press(self, key: str) -> str:
        """Press a key for the face on screen, wait for the next one, and return the id of the face answered."""
        before = self.face
        self.page.keyboard.press(key)
        self.wait_for_other(before)
        self.typed[before] = key
        return before

    def wait_for_other(self, image_id: str) -> None:
        """Wait until another face than `image_id` is on screen, or none is."""
        self.page.wait_for_function(
            "id => (document.querySelector('[data-testid=face]')?.dataset.imageId ?? '') !== id", arg=image_id
        )

    def wait_until_sent(self) -> None:
        """Wait until the browser keeps no answer any more."""
        self.page.wait_for_function(
            "() => !Object.keys(localStorage).some(key => key.startsWith('annotator.outbox.'))",
            timeout=1000 * SETTLE_SECONDS,
        )

    def kept(self) -> int:
        """Return how many answers the browser keeps."""
        return int(
            self.page.evaluate("Object.keys(localStorage).filter(k => k.startsWith('annotator.outbox.')).length")
        )

    def sees_offline(self, text: str) -> None:
        """Check that the amber line says `text`."""
        expect(self.part("offline")).to_contain_text(text, timeout=1000 * SETTLE_SECONDS)

    def rest(self, seconds: float = 0.12) -> None:
        """Look at the face for a moment."""
        time.sleep(seconds)
