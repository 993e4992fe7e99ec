"""The annotation loop's method: LION, LEAF's experts and ReMoP's centers together. ALGORITHMS.md 10.

One host and two plug-ins, each with the part of its paper that the others lack: LION (6) doubts given labels, learns
from candidate sets and from what an image surely is not; EAF (5) puts experts between the backbone, the head and the
logits, which start as the identity; ReMoP (7) reads every face by head and class centers at once. What a person sees
(suggestions, ambiguous sets, disagreement of the two readings) comes from one network and one pass.

LION's normative options stay as they are. Deviations of the plug-ins from their own defaults: EAF keeps the host's
consistency cross-entropy, because LION's masks and complementary labels are built on hard pseudo-labels; both EAF
levels open two of four experts. Features have unit length, as LION's prototypes want them, so the mixture is the cosine
one.
"""

from collections.abc import Mapping
from typing import Any

SPEC = "eaf+remop+lion"
LOOP: Mapping[str, Any] = {
    "eaf": {"semantic": True, "instance": "logits", "category": False},
    "remop": {"beta": 0.5, "mix": "logit_cos", "temperature": 0.1},
}
