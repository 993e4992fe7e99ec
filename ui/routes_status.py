"""How things stand: the whole status, the small live one, and the wish for a training run."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from annotator.auth import require_role
from annotator.store.learning import RETRAIN
from ui.models import JobReply, RetrainBody, queue_json
from ui.routes_session import ServicesDep, UserDep

router = APIRouter(tags=["status"])


@router.get("/status")
def status(user: UserDep, services: ServicesDep) -> dict[str, Any]:
    """Return what `annotator status --json` prints, with the queue as this server holds it, and `you`."""
    return {
        **services.overview.status(),
        "queue": queue_json(services.queue.status()),
        "learner": services.learner.state(),
        "you": services.tallies.of(user.id),
    }


@router.get("/live")
def live(user: UserDep, services: ServicesDep) -> JSONResponse:
    """Return what the page shows all the time; from memory, so it may be polled."""
    queue = services.queue.status()
    return JSONResponse(
        {
            "queue": queue_json(queue),
            "learner": services.learner.state(),
            "labels": {"unlabeled": queue.remaining},
            "you": services.tallies.of(user.id),
        }
    )


@router.post("/retrain", status_code=202)
def retrain(body: RetrainBody, user: UserDep, services: ServicesDep) -> JobReply:
    """Ask the learner for a training run soon."""
    require_role(user, "reviewer", "admin")
    payload: dict[str, object] = {"by": user.name}
    if body.method is not None:
        payload["method"] = body.method
    job = services.store.learning.file_job(RETRAIN, payload)
    return JobReply(id=job.id, kind=job.kind, state=job.state, filed_at=job.filed_at)
