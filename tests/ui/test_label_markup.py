"""The desk's static markup and the sign-in page: keys, hooks, and text that stays text."""

import json
import re
from html import unescape

import pytest

from annotator.taxonomy import FERPLUS, MAX_CLASSES, RESERVED_KEYS, custom
from ui.label import candidate_keys, class_marks, desk_markup
from ui.pages import login_page
from ui.theme import HEAD, STATIC, stamp


@pytest.mark.parametrize("count", [2, 8, 19, MAX_CLASSES])
def test_no_two_things_share_a_key(count: int) -> None:
    taxonomy = custom("own", [f"class-{chr(97 + i % 26)}{i}" for i in range(count)])
    keys = [c.key for c in taxonomy.classes] + candidate_keys(taxonomy) + sorted(RESERVED_KEYS)
    assert len(keys) == len(set(keys))


def test_every_class_has_one_button_in_taxonomy_order() -> None:
    markup = desk_markup(FERPLUS, "demo")
    assert re.findall(r'data-testid="choice-([a-z]+)"', markup) == list(FERPLUS.slugs)
    hooks = re.findall(r'data-testid="([^"]+)"', markup)
    assert len(hooks) == len(set(hooks))


def test_marks_are_distinct_letters() -> None:
    marks = class_marks(FERPLUS)
    assert len(set(marks.values())) == len(marks)
    assert (marks["surprise"], marks["sadness"], marks["fear"]) == ("Su", "Sa", "F")


def test_a_project_name_cannot_leave_its_attribute() -> None:
    name = "\"><script>alert('x')</script>"
    markup = desk_markup(FERPLUS, name)
    assert "<script" not in markup
    (settings,) = re.findall(r'data-desk="([^"]*)"', markup)
    assert json.loads(unescape(settings))["project"] == name


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("/", "/"),
        ("/?tab=2", "/?tab=2"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ('/"><script>', "/&quot;&gt;&lt;script&gt;"),
    ],
)
def test_signing_in_leads_nowhere_else(given: str, used: str) -> None:
    assert f'data-next="{used}"' in login_page("demo", next_path=given)


def test_the_pages_load_nothing_from_elsewhere() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir() if path.suffix != ".png"}
    for name, text in {**texts, "head": HEAD, "login": login_page("demo")}.items():
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), name
    assert "innerHTML" not in "".join(texts.values())


def test_the_login_page_has_no_inline_script_or_style() -> None:
    page = login_page("<b>x</b>", notice="<i>")
    assert not re.search(r"<script(?![^>]* src=)", page)
    assert "style=" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert stamp() in page
