"""The features that serve before any training: those of the encoder that the workspace starts from (`learner.start`).

HOG features are there within a second and serve first; a network's take over once every face has them. So do another
network's after the start was changed or adapted to the pool: the old ones serve until the new are complete.
"""

import logging

from annotator import encoders
from annotator.encoders import NETWORK
from annotator.errors import AnnotatorError
from annotator.features import FeatureShards
from annotator.loop.embed import HogEncoder
from annotator.loop.embed_network import HubMaker, NetworkFeatures
from annotator.settings import Workspace

log = logging.getLogger(__name__)


class StartEncoder:
    """Makes the start's features in steps. `shards` are those that serve; `trouble` says why it is not the start's.

    serving_id: the encoder of the order that serves now.
    """

    def __init__(self, workspace: Workspace, serving_id: str) -> None:
        self._workspace = workspace
        self._hog = HogEncoder(workspace)
        self._network: NetworkFeatures | None = None
        self._hub: HubMaker | None = None
        self._hub_source = ""
        self._missed: str | None = None
        self._serves: FeatureShards | None = None  # a network's, whole
        self._serve_older(serving_id)
        self.aim()

    def _serve_older(self, serving_id: str) -> None:
        """Go on with the network that served; without it HOG features come again at once."""
        whole = [
            i.id for p, i in encoders.folders(self._workspace).items() if i.kind == NETWORK and encoders.is_complete(p)
        ]
        if whole:
            name = serving_id if serving_id in whole else whole[-1]
            try:
                self._serves = FeatureShards(self._workspace.folder("encoders") / name)
            except AnnotatorError as error:
                log.warning("%s does not serve any more: %s", name, error)

    @property
    def shards(self) -> FeatureShards | None:
        """The features that serve, None before the first."""
        return self._serves or self._hog.shards

    @property
    def trouble(self) -> str | None:
        """Why the features that serve are not those of the start, None when they are or soon will be."""
        failure = self._missed or (self._network.failure if self._network is not None else None)
        if failure is None:
            return None
        return f"the encoder {self._workspace.settings.learner.start!r} cannot be used: {failure}"

    @property
    def settled(self) -> bool:
        """Whether the start's features serve and there are no others to wait for."""
        if self.trouble is not None:
            return True
        if self._network is not None:
            return self._serves is self._network.shards and self._network.caught_up
        return self._hub is None and not self._hub_source and self._hog.pending() <= 0

    def aim(self) -> None:
        """Turn to what `learner.start` names now."""
        self.close()
        self._missed, self._network, self._hub_source = None, None, ""
        try:
            source = encoders.source_of(self._workspace)
            if source is None:
                return
            if not isinstance(source, str):
                folder = source.parent
                if folder.parent != self._workspace.folder("encoders"):
                    folder = encoders.publish(self._workspace, source, str(source))
            elif (made := encoders.of_hub(self._workspace, source)) is not None:
                folder = made
            else:
                self._hub_source = source
                return
            self._follow(FeatureShards(folder))
        except (AnnotatorError, OSError) as error:
            self._miss(str(error))

    def _follow(self, shards: FeatureShards) -> None:
        self._network = NetworkFeatures(self._workspace, shards)
        if encoders.is_complete(shards.folder):
            self._serves = shards
        elif self._serves is not None and self._serves.info.id == shards.info.id:
            self._serves = None

    def _miss(self, why: str) -> None:
        self._missed = why
        log.warning("%s; others serve", self.trouble)
        if self._serves is not None:  # at least new faces are read as the others were
            self._network = NetworkFeatures(self._workspace, self._serves)

    def step(self, *, quiet: bool) -> int:
        """Embed more faces, or see what a child has embedded; return how many. `quiet` says that none came lately."""
        if self._hub_source:
            self._make(quiet)
        done = self._network.step() if self._network is not None else 0
        if self._network is not None:
            self._swap(self._network)
        if self._serves is None or self._wants_hog:
            done += self._hog.step(quiet=quiet)
        if self._wants_hog and self._serves is not None and self._hog.shards is not None and self._hog.pending() <= 0:
            self._serves = None
        return done

    @property
    def _wants_hog(self) -> bool:
        return self._network is None and not self._hub_source and self._missed is None

    def _make(self, quiet: bool) -> None:
        if self._hub is None:
            if quiet and self._hog.enough:
                self._hub = HubMaker(self._workspace, self._hub_source)
            return
        if self._hub.done():
            folder = encoders.publish(self._workspace, self._hub.file, self._hub_source)
            self._hub.file.unlink()
            self._hub, self._hub_source = None, ""
            self._follow(FeatureShards(folder))
        elif self._hub.failure is not None:
            self._miss(self._hub.failure)
            self._hub, self._hub_source = None, ""

    def _swap(self, network: NetworkFeatures) -> None:
        if self._serves is network.shards or not network.caught_up:
            return
        before = self.shards
        encoders.mark_complete(network.shards.folder)
        self._serves = network.shards
        log.info("the features of %s serve from now on", network.shards.info.id)
        # The page reads the old ones until the next order names the new.
        encoders.drop(self._workspace, {network.shards.info.id, before.info.id if before is not None else ""})

    def close(self) -> None:
        """End the children."""
        for child in (self._network, self._hub):
            if child is not None:
                child.close()
        self._hub = None
