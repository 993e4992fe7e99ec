"""What a linked Label Studio calls: the ML backend and the webhook. The gate has checked the secret of the link.

Bodies are read by hand, not as models: `/setup` carries a token of the project's creator, and no error may repeat what
a body held.
"""

import json
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from annotator.errors import ConflictError, InputError, NotFoundError
from annotator.labelstudio.api.server import WEBHOOK_ACTIONS
from annotator.store.exchange_records import Link
from annotator.store.learning import RETRAIN
from ui.models import BackendHealth, BackendPredictions, BackendSetup, BackendVersions, HookReply
from ui.routes_session import ServicesDep
from ui.security import LINKED
from ui.services import Services

log = logging.getLogger(__name__)

router = APIRouter(prefix=LINKED.rstrip("/"), tags=["Label Studio"])

TRAINING = "START_TRAINING"
"""Not one of Label Studio's webhooks: it is posted to the ML backend when somebody asks for training there."""
FULL_LOOK = "TASKS_DELETED"
_SHOWN_ACTION_CHARS = 60


def link_of(request: Request) -> Link:
    """Return the link whose secret the request carried."""
    link: Link = request.scope["state"]["link"]
    return link


LinkDep = Annotated[Link, Depends(link_of)]


def _takes(what: str) -> dict[str, Any]:
    """Describe a body that is read by hand."""
    schema = {"type": "object", "description": what}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.get("/health")
def health(services: ServicesDep) -> BackendHealth:
    """Say that the server is up."""
    return BackendHealth(status="UP", model_class=services.workspace.settings.name)


@router.post("/setup", openapi_extra=_takes("the project that asks"))
async def setup(request: Request, link: LinkDep, services: ServicesDep) -> BackendSetup:
    """Name the model version that predictions bear. Of the body only the project is read; its token is not kept."""
    project = str((await _body(request)).get("project") or link.project_id).partition(".")[0]
    if project != str(link.project_id):
        raise ConflictError(f"this workspace is linked to project {link.project_id}, not to the one that asks")
    return BackendSetup(model_version=services.backend.model_version(link))


@router.get("/versions")
def versions(link: LinkDep, services: ServicesDep) -> BackendVersions:
    """List the model versions that predictions bear: one, that which the project shows."""
    return BackendVersions(versions=[services.backend.model_version(link)])


@router.post("/predict", response_model=BackendPredictions, openapi_extra=_takes("tasks, and the project that asks"))
async def predict(request: Request, link: LinkDep, services: ServicesDep) -> JSONResponse:
    """Return a prediction for each task, from memory; an empty list for one that is not open in the link."""
    raw = await request.body()
    return await run_in_threadpool(_predict, raw, link, services)


@router.post("/webhook", openapi_extra=_takes("action: what happened"))
async def webhook(request: Request, link: LinkDep, services: ServicesDep) -> HookReply:
    """Wake the sync, or file a training run. The news itself is not believed: the sync looks for itself."""
    action = str((await _body(request)).get("action"))
    if action == TRAINING:
        wish: dict[str, object] = {"trigger": "Label Studio"}
        await run_in_threadpool(services.store.learning.file_job, RETRAIN, wish)
        return HookReply(status="filed")
    if action in WEBHOOK_ACTIONS:
        await run_in_threadpool(services.wake.ring, full=action == FULL_LOOK)
        return HookReply(status="noted")
    log.warning("Label Studio sent an action that nothing is done about: %r", action[:_SHOWN_ACTION_CHARS])
    return HookReply(status="ignored")


@router.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
def nothing(rest: str) -> None:
    """Keep what is under our prefix away from Gradio."""
    raise NotFoundError(f"no such route: {LINKED}{rest[:100]}")


def _predict(raw: bytes, link: Link, services: Services) -> JSONResponse:
    body = _parsed(raw)
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        raise InputError("tasks: a list is needed")
    predicted = services.backend.predict(link, body.get("project"), tasks)
    if predicted.left_out:
        log.warning("Label Studio asked about tasks that get no prediction: %s", predicted.reasons())
    return JSONResponse({"results": predicted.results})


async def _body(request: Request) -> dict[str, Any]:
    return _parsed(await request.body())


def _parsed(raw: bytes) -> dict[str, Any]:
    """Return the object in a body; what it held is told in no error."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise InputError("the body is not a JSON object")
    return body
