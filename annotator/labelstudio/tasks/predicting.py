"""What a task says about a face, and where it stands in Label Studio's order, which asks the lowest score first."""

from typing import Any

from annotator.labelstudio.config.controls import Mapping
from annotator.labelstudio.config.results import prediction
from annotator.labelstudio.tasks.wanted import Wanted
from annotator.settings import Workspace
from annotator.store.exchange_records import Link, Shown


class Predictor:
    """Makes the predictions of one link."""

    def __init__(self, workspace: Workspace, link: Link) -> None:
        self._mapping = Mapping.from_dict(link.settings["mapping"])
        self._taxonomy = workspace.settings.taxonomy
        self._by_confidence = link.settings.get("order") == "confidence"

    def score(self, item: Wanted) -> float:
        """Return the place in our queue, or the highest probability where the link orders by that; in [0, 1]."""
        return item.confidence if self._by_confidence else item.priority

    def say(self, shown: Shown, score: float, version: str) -> dict[str, Any]:
        """Return a prediction as imports take it; of a face that is asked blind it carries nothing but the score."""
        made = prediction(
            self._mapping,
            self._taxonomy,
            candidates=shown.candidates,
            score=score,
            model_version=version,
            blind=shown.blind,
        )
        # In full: neighbours in the order of a large pool differ by less than a rounded score tells.
        return made | {"score": score}

    def data(self, item: Wanted, url: str) -> dict[str, Any]:
        """Return the data of a task; keys that only the project's own configuration knows are empty."""
        told: dict[str, Any] = dict.fromkeys(self._mapping.more_keys, "")
        told |= {self._mapping.data_key: url, "image_id": item.image.image_id, "reason": item.reason}
        if item.candidates and not item.blind:
            told["confidence"] = round(item.confidence, 4)
        return told
