"""The Team tab: who answered how much and how fast, and the accounts. For reviewers and admins."""

from datetime import datetime

import gradio as gr

from annotator.records import User
from annotator.settings import Workspace
from annotator.store import LabelStore
from ui.history import History, Person
from ui.tables import ago, section

REFRESH_SECONDS = 5.0
SEES_ALL = frozenset({"reviewer", "admin"})
_PEOPLE = ("Name", "Answers", "Today", "Seconds per face", "Skipped", "Flagged", "Undone", "Late", "Last answer")
_ACCOUNTS = ("Name", "Role", "State")


def build_team_tab(workspace: Workspace, store: LabelStore) -> None:
    """Add the Team tab to the open `gr.Tabs`; annotators see their own line only."""
    history = History(store)

    def read(request: gr.Request) -> str:
        return team_markup(store, history, _viewer(store, request.username), datetime.now().astimezone())

    with gr.Tab("Team", id="team") as tab, gr.Column(elem_classes="desk-page"):
        page = gr.HTML('<p class="desk-quiet">Reading the answers.</p>', apply_default_css=False)
        timer = gr.Timer(REFRESH_SECONDS)
    for event in (tab.select, timer.tick):
        event(read, outputs=[page], queue=False, show_progress="hidden", api_visibility="private")


def team_markup(store: LabelStore, history: History, viewer: User, now: datetime) -> str:
    """Return what `viewer` may see of the team at `now`, as HTML."""
    users = {user.id: user for user in store.accounts.list()}
    people = history.people(now)
    if viewer.role not in SEES_ALL:
        mine = [person for person in people if person.user_id == viewer.id]
        return section("Your answers", _PEOPLE, [_line(person, viewer.name, now) for person in mine])
    lines = [_line(person, _named(users.get(person.user_id)), now) for person in people]
    accounts = [(user.name, user.role, _state(user)) for user in sorted(users.values(), key=lambda u: u.name.lower())]
    return section("Who answered", _PEOPLE, lines) + section("Accounts", _ACCOUNTS, accounts, "narrow")


def _viewer(store: LabelStore, name: str | None) -> User:
    """Return who looks. Without a name nobody had to sign in: this is single-user mode."""
    return store.accounts.get(name) if name else store.accounts.local_user()


def _named(user: User | None) -> str:
    return user.name if user is not None else "unknown"


def _state(user: User) -> str:
    if user.disabled:
        return "disabled"
    return "simulated" if user.simulated else "active"


def _line(person: Person, name: str, now: datetime) -> tuple[str, ...]:
    seconds = "–" if person.seconds is None else f"{person.seconds:.1f}"
    counts = (person.skips, person.flags, person.undone, person.late)
    return (name, f"{person.answers:,}", f"{person.today:,}", seconds, *map(str, counts), ago(person.last, now))
