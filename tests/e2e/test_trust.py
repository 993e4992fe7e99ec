"""Nothing a person pressed is lost: reloads, broken networks, restarts, lost sessions, stale tabs."""

from collections.abc import Callable

from playwright.sync_api import BrowserContext, Route, expect

from annotator.records import Annotation
from annotator.settings import Workspace
from tests.e2e.hands import FACE, Hands
from tests.e2e.serving import Site, add_user, serving

Contexts = Callable[..., BrowserContext]
Make = Callable[..., Workspace]


def stored(site: Site) -> list[Annotation]:
    """Return everything people have answered, in order."""
    return [a for a in site.store.decisions.list() if a.user_id is not None]


def test_a_reload_in_the_middle_goes_on_with_the_same_face(site: Site, hands: Hands) -> None:
    for key in "12":
        hands.rest()
        hands.press(key)
    hands.rest(0.5)
    on_screen = hands.face
    hands.page.reload()
    hands.page.wait_for_selector(FACE)
    assert hands.face == on_screen
    expect(hands.part("counter")).to_have_text("2 today")
    hands.rest()
    hands.press("3")
    hands.wait_until_sent()
    answers = stored(site)
    assert [a.image_id for a in answers] == list(hands.typed)
    assert not any(a.late or a.mismatch for a in answers)


def test_a_key_pressed_right_before_a_reload_is_stored_once(site: Site, hands: Hands) -> None:
    hands.rest()
    before = hands.face
    hands.page.keyboard.press("4")
    hands.page.reload()
    hands.page.wait_for_selector(FACE)
    hands.wait_until_sent()
    hands.rest(0.3)
    assert hands.face != before
    assert [(a.image_id, a.classes) for a in stored(site)] == [(before, ("sadness",))]


def test_offline_answers_wait_in_calm_amber_and_are_sent_once(site: Site, open_context: Contexts) -> None:
    context = open_context()
    hands = Hands.sit_down(context.new_page(), site.url)
    hands.rest()
    hands.press("1")
    hands.wait_until_sent()
    expect(hands.part("offline")).to_be_hidden()
    hands.rest(0.6)  # the next faces are here already
    context.set_offline(True)
    for key in "567":
        hands.rest()
        hands.press(key)
    hands.sees_offline("3 answers kept here, will be sent")
    assert hands.kept() == 3
    assert len(stored(site)) == 1
    hands.rest()
    hands.page.keyboard.press("Backspace")  # undo works without a network too
    hands.rest(0.3)
    context.set_offline(False)
    hands.wait_until_sent()
    expect(hands.part("offline")).to_be_hidden()
    answers = stored(site)
    assert [(a.kind, a.classes) for a in answers] == [
        ("label", ("neutral",)),
        ("label", ("anger",)),
        ("label", ("disgust",)),
        ("label", ("fear",)),
        ("undo", ()),
    ]
    assert [a.image_id for a in answers[:4]] == list(hands.typed)
    assert answers[4].supersedes == answers[3].id


def test_answers_survive_a_server_that_restarts(site: Site, hands: Hands) -> None:
    hands.rest(0.6)
    site.stop()
    for key in "12":
        hands.rest()
        hands.press(key)
    hands.sees_offline("2 answers kept here, will be sent")
    site.start()
    hands.wait_until_sent()
    assert [a.image_id for a in stored(site)] == list(hands.typed)


def test_answers_survive_a_closed_page(site: Site, open_context: Contexts) -> None:
    context = open_context()
    hands = Hands.sit_down(context.new_page(), site.url)
    hands.rest(0.6)
    context.set_offline(True)
    for key in "12":
        hands.rest()
        hands.press(key)
    hands.page.keyboard.press("z")
    hands.rest(2.5)
    hands.page.close()
    context.set_offline(False)
    assert stored(site) == []
    later = Hands.sit_down(context.new_page(), site.url)
    later.wait_until_sent()
    answers = stored(site)
    assert [a.image_id for a in answers[:2]] == list(hands.typed)
    assert [(a.kind, a.supersedes) for a in answers[2:]] == [("undo", answers[1].id)]


def test_an_answer_whose_reply_was_lost_is_not_doubled(site: Site, hands: Hands) -> None:
    lost: list[object] = []

    def lose_reply(route: Route) -> None:
        if not lost:
            lost.append(route.fetch())
            route.abort("connectionreset")
        else:
            route.continue_()

    hands.page.route("**/api/v1/annotations", lose_reply)
    hands.rest()
    hands.press("6")
    hands.wait_until_sent()
    assert len(lost) == 1
    assert [(a.image_id, a.classes) for a in stored(site)] == [(next(iter(hands.typed)), ("disgust",))]


def test_an_overloaded_server_is_asked_again(site: Site, hands: Hands) -> None:
    refused: list[int] = []

    def refuse_twice(route: Route) -> None:
        if len(refused) < 2:
            refused.append(1)
            route.fulfill(status=503, json={"detail": "too many writes wait"})
        else:
            route.continue_()

    hands.page.route("**/api/v1/annotations", refuse_twice)
    hands.rest()
    hands.press("2")
    hands.wait_until_sent()
    assert len(refused) == 2
    assert len(stored(site)) == 1


def test_an_answer_that_is_refused_for_good_is_shown_not_dropped(site: Site, hands: Hands) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=422, json={"detail": "class <b>gone</b> is not known"})

    hands.page.route("**/api/v1/annotations", refuse)
    hands.rest()
    hands.press("2")
    hands.sees_offline("1 answer refused: class <b>gone</b> is not known")
    hands.part("offline").get_by_role("button").click()
    expect(hands.part("offline")).to_be_hidden()


def test_a_stale_tab_still_counts_and_is_marked_late(make: Make, open_context: Contexts) -> None:
    workspace = make(queue={"lease_seconds": 0.6})
    with serving(workspace) as site:
        hands = Hands.sit_down(open_context().new_page(), site.url)
        face = hands.face
        # The tab sleeps: no renewals reach the server until long after the lease has ended.
        hands.page.route("**/renew", lambda route: route.abort())
        hands.rest(3.0)
        hands.press("7")
        hands.wait_until_sent()
        answers = stored(site)
        assert [(a.image_id, a.late, a.mismatch) for a in answers] == [(face, True, False)]


def test_a_face_on_screen_keeps_its_lease(make: Make, open_context: Contexts) -> None:
    workspace = make(queue={"lease_seconds": 4.0})
    with serving(workspace) as site:
        hands = Hands.sit_down(open_context().new_page(), site.url)
        hands.rest(9.0)
        face = hands.press("7")
        hands.wait_until_sent()
        assert [(a.image_id, a.late) for a in stored(site)] == [(face, False)]


def test_two_people_never_have_the_same_face(faces_workspace: Workspace, open_context: Contexts) -> None:
    for name in ("alice", "bob"):
        add_user(faces_workspace, name)
    with serving(faces_workspace) as site:
        one, two = (Hands.sign_in(open_context().new_page(), site.url, name) for name in ("alice", "bob"))
        for _ in range(8):
            for hands in (one, two):
                assert one.face != two.face
                hands.rest()
                hands.press("2")
        one.wait_until_sent()
        two.wait_until_sent()
        answers = stored(site)
        assert len({a.image_id for a in answers}) == len(answers) == 16
        assert not any(a.duplicate or a.late for a in answers)
        assert {a.user_name for a in answers} == {"alice", "bob"}


def test_signing_in_and_out(faces_workspace: Workspace, open_context: Contexts) -> None:
    add_user(faces_workspace, "alice")
    with serving(faces_workspace) as site:
        page = open_context().new_page()
        page.goto(site.url)
        page.get_by_test_id("login-name").fill("alice")
        page.get_by_test_id("login-password").fill("wrong")
        page.get_by_test_id("login-submit").click()
        expect(page.get_by_test_id("login-error")).to_have_text("Name or password is wrong.")
        hands = Hands.sign_in(page, site.url, "alice")
        hands.part("user").click()
        hands.part("logout").click()
        page.wait_for_url("**/login*")
        page.goto(site.url)
        expect(page.get_by_test_id("login-name")).to_be_visible()


def test_a_lost_session_keeps_answers_until_the_same_person_is_back(
    faces_workspace: Workspace, open_context: Contexts
) -> None:
    for name in ("alice", "bob"):
        add_user(faces_workspace, name)
    with serving(faces_workspace) as site:
        context = open_context()
        hands = Hands.sign_in(context.new_page(), site.url, "alice")
        hands.rest(0.6)
        context.clear_cookies()
        for key in "35":
            hands.rest()
            hands.press(key)
        hands.sees_offline("You are signed out. 2 answers kept here, will be sent.")
        hands.part("offline").get_by_role("link").click()
        expect(hands.page.locator("#kept")).to_contain_text("2 answers are kept in this browser")
        Hands.sign_in(hands.page, site.url, "bob")
        hands.rest(1.0)
        assert hands.kept() == 2  # they are not bob's
        context.clear_cookies()
        Hands.sign_in(hands.page, site.url, "alice")
        hands.wait_until_sent()
        assert [(a.user_name, a.image_id) for a in stored(site)] == [("alice", face) for face in hands.typed]


def test_html_in_names_is_text(make: Make, open_context: Contexts) -> None:
    project = "<img src=x onerror=document.title='owned'>${7*7}{{7}}"
    person = "<b onclick=alert(1)>eve</b>${7*7}"
    workspace = make(name=project)
    add_user(workspace, person, "admin")
    with serving(workspace) as site:
        page = open_context().new_page()
        page.goto(site.url)
        expect(page.get_by_role("heading")).to_have_text(project)
        hands = Hands.sign_in(page, site.url, person)
        expect(hands.part("user")).to_have_text(person)
        expect(page.locator(".desk-project")).to_have_text(project)
        hands.rest()
        hands.press("1")
        page.get_by_role("tab", name="Team").click()
        expect(page.locator(".desk-table td").first).to_have_text(person)
        assert page.locator(".desk-table b, .desk img[src=x]").count() == 0
        assert page.evaluate("document.title") != "owned"
