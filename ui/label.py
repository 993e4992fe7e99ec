"""The Label tab: static markup for the desk. Everything that moves is JavaScript in `static/` on the REST routes."""

import html
import json

import gradio as gr

from annotator.settings import Workspace
from annotator.taxonomy import RESERVED_KEYS, ExpressionClass, Taxonomy

CANDIDATE_KEYS = "jkl"
"""The second keys: first, second and third candidate, under the right hand."""

_ACTIONS = (
    ("several", "Several", "S", "Several may be true: choose them, then Enter"),
    ("none", "None of these", "N", "None of the highlighted classes"),
    ("unusable", "Unusable", "U", "No face, broken, or not a photo"),
    ("flag", "Flag", "F", "Flag with a note for a reviewer"),
    ("skip", "Skip", "Space", "Skip this face"),
)


def build_label_tab(workspace: Workspace) -> None:
    """Add the Label tab to the open `gr.Tabs`."""
    with gr.Tab("Label", id="label"):
        gr.HTML(desk_markup(workspace.settings.taxonomy, workspace.settings.name), apply_default_css=False)


def candidate_keys(taxonomy: Taxonomy) -> list[str]:
    """Return the second keys that are free of class keys and of the desk's actions, in order."""
    taken = {item.key for item in taxonomy.classes} | RESERVED_KEYS
    return [key for key in CANDIDATE_KEYS if key not in taken]


def class_marks(taxonomy: Taxonomy) -> dict[str, str]:
    """Return one or two letters per slug, distinct as far as two letters allow."""
    initials = [item.name[:1] for item in taxonomy.classes]
    return {
        item.slug: item.name[:2] if initials.count(item.name[:1]) > 1 else item.name[:1] for item in taxonomy.classes
    }


def desk_markup(taxonomy: Taxonomy, project: str) -> str:
    """Return the desk's HTML: no face yet, every class in its fixed place."""
    marks = class_marks(taxonomy)
    seconds = candidate_keys(taxonomy)
    described = [
        {"slug": c.slug, "name": c.name, "color": c.color, "key": c.key, "mark": marks[c.slug]}
        for c in taxonomy.classes
    ]
    settings = html.escape(json.dumps({"project": project, "classes": described, "candidate_keys": seconds}))
    return f"""
<main id="desk" class="desk" tabindex="-1" data-desk="{settings}">
  <section class="desk-stage" aria-label="The face">
    <div class="desk-frame">
      <img class="desk-face" data-testid="face" data-image-id="" alt="" hidden>
      <p class="desk-empty" role="status">Fetching the first faces.</p>
    </div>
    <div class="desk-why">
      <p class="desk-reason" data-testid="reason"></p>
      <div class="desk-near" aria-label="Nearest labeled faces" hidden></div>
    </div>
  </section>
  <aside class="desk-panel" aria-label="Answer">
    <div class="desk-ask">
      <h2 class="desk-question" data-testid="question" aria-live="polite">&nbsp;</h2>
      <p class="desk-hint" role="status" aria-live="polite"></p>
    </div>
    <div class="desk-candidates" role="group" aria-label="Suggested">{_candidate_slots(seconds)}</div>
    <div class="desk-choices" role="group" aria-label="All classes"
         data-many="{str(len(taxonomy.classes) > 12).lower()}">{_choices(taxonomy.classes, marks)}</div>
    <div class="desk-actions" role="group" aria-label="Other answers">{_actions()}</div>
    <form class="desk-flag" hidden>
      <label for="desk-note">What should a reviewer know?</label>
      <input id="desk-note" data-testid="flag-note" maxlength="500" autocomplete="off">
      <button type="submit" data-testid="flag-send">Send <kbd>Enter</kbd></button>
      <button type="button" data-action="cancel">Cancel <kbd>Esc</kbd></button>
    </form>
    <div class="desk-day">
      <button type="button" class="desk-undo" data-testid="undo" data-action="undo"
              aria-label="Undo the last answer" title="Undo the last answer"><kbd>⌫</kbd> Undo</button>
      <p class="desk-count"><span data-testid="counter">0 today</span><span class="desk-pace"></span></p>
      <span class="desk-last" aria-hidden="true"></span>
      <svg class="desk-spark" aria-hidden="true" viewBox="0 0 72 16" preserveAspectRatio="none"></svg>
    </div>
  </aside>
  <footer class="desk-foot">
    <p class="desk-status" data-testid="status">Connecting.</p>
    <p class="desk-offline" data-testid="offline" role="status" aria-live="polite" hidden></p>
  </footer>
</main>"""


def _candidate_slots(seconds: list[str]) -> str:
    slots = "".join(
        f'<button type="button" class="desk-candidate" data-slot="{slot}" hidden>'
        f'<span class="desk-dot"></span><span class="desk-name"></span><span class="desk-prob"></span>'
        f"<kbd>{html.escape(key.upper())}</kbd>"
        f'<span class="desk-bar"><span></span></span></button>'
        for slot, key in enumerate(seconds)
    )
    return slots + '<p class="desk-quiet" hidden></p>'


def _choices(classes: tuple[ExpressionClass, ...], marks: dict[str, str]) -> str:
    return "".join(
        f'<button type="button" class="desk-choice" data-testid="choice-{html.escape(c.slug)}" '
        f'data-class="{html.escape(c.slug)}" aria-keyshortcuts="{html.escape(c.key)}" aria-pressed="false">'
        f"<kbd>{html.escape(c.key.upper())}</kbd>"
        f'<span class="desk-dot" style="--dot:{html.escape(c.color)}">{html.escape(marks[c.slug])}</span>'
        f'<span class="desk-name">{html.escape(c.name)}</span><span class="desk-tag"></span></button>'
        for c in classes
    )


def _actions() -> str:
    return "".join(
        f'<button type="button" class="desk-action" data-testid="{name}" data-action="{name}" title="{title}">'
        f'<kbd>{key}</kbd><span class="desk-name">{label}</span></button>'
        for name, label, key, title in _ACTIONS
    )
