"""What a push did, and what it would do."""

from dataclasses import dataclass

from annotator.labelstudio.tasks.wanted import Wanted
from annotator.labelstudio.tasks.withdraw import Withdrawal


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would do, and the state that it starts from.

    to_renew: open tasks whose prediction would be renewed. first: the first of the faces to push, in order.
    withdraw: the tasks to be taken back. unfinished: pushes that were cut off.
    """

    open_tasks: int
    top_k: int
    version_now: str | None
    version: str
    to_push: int
    to_renew: int
    first: tuple[Wanted, ...]
    withdraw: tuple[Withdrawal, ...]
    unfinished: int
    given_up: int
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return it as a sentence."""
        return (
            f"would push {self.to_push} faces, renew {self.to_renew} predictions ({self.version_now} to "
            f"{self.version}) and withdraw {len(self.withdraw)} tasks; {self.open_tasks} of {self.top_k} are open"
        )


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did. given_up: faces put on the list of the dead; later: faces that the next pushes try again."""

    pushed: int = 0
    recovered: int = 0
    renewed: int = 0
    withdrawn: int = 0
    erased: int = 0
    given_up: int = 0
    later: int = 0
    version: str | None = None
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything was done or is to be said."""
        return self != PushReport(version=self.version)

    def summary(self) -> str:
        """Return it as one sentence, and the warnings behind it."""
        counts = {
            "pushed": self.pushed,
            "found again": self.recovered,
            "predictions renewed": self.renewed,
            "withdrawn": self.withdrawn,
            "erased": self.erased,
            "given up": self.given_up,
            "to try again": self.later,
        }
        said = ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "nothing to push"
        return "; ".join([said, *self.warnings])
