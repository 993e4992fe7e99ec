"""The hot path: the next faces, answers, undo, leases, one's own history."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from annotator.queue import WRITE_SECONDS
from annotator.records import Answer
from ui.models import (
    AnnotationReply,
    AnswerBody,
    HistoryReply,
    LeaseReply,
    NextReply,
    UndoBody,
    UndoReply,
    annotation_json,
    image_url,
    item_json,
    queue_json,
)
from ui.routes_session import ServicesDep, UserDep

router = APIRouter(tags=["label"])


@router.get("/next", response_model=NextReply)
async def next_faces(
    user: UserDep,
    services: ServicesDep,
    n: Annotated[int, Query(ge=1, le=20, description="how many faces")] = 1,
    have: Annotated[str | None, Query(max_length=4_000, description="image ids still held, comma-separated")] = None,
) -> JSONResponse:
    """Lease the next faces. They come in the order of asking and are nobody else's until the lease ends."""
    kept = None if have is None else [image_id for image_id in have.split(",") if image_id]
    handout = await run_in_threadpool(services.queue.next, user, n, kept)
    slugs = services.slugs
    return JSONResponse(
        {
            "items": [item_json(item, slugs) for item in handout.items],
            "queue": queue_json(services.queue.status()),
            "message": handout.message,
        }
    )


@router.post(
    "/annotations", status_code=201, response_model=AnnotationReply, responses={200: {"model": AnnotationReply}}
)
async def answer(body: AnswerBody, request: Request, user: UserDep, services: ServicesDep) -> JSONResponse:
    """Store an answer: 201, or 200 with the same body when its `client_id` was stored before.

    A late answer, one after somebody else's, and one about another face than the leased one are stored and marked.
    """
    source = body.source or ("ui" if "cookie" in request.headers else "api")
    stored = await _done(
        services.writer.submit(
            user,
            Answer(
                client_id=body.client_id,
                image_id=body.image_id,
                kind=body.kind,
                classes=tuple(body.classes),
                lease_id=body.lease_id,
                confidence=body.confidence,
                note=body.note,
                duration_ms=body.duration_ms,
                supersedes=body.supersedes,
                source="simulate" if user.simulated else source,
            ),
        )
    )
    return JSONResponse(annotation_json(stored.annotation), 201 if stored.created else 200)


@router.post("/undo", status_code=201, response_model=UndoReply, responses={200: {"model": UndoReply}})
async def undo(body: UndoBody, user: UserDep, services: ServicesDep) -> JSONResponse:
    """Take back one of one's own answers and get its face again."""
    stored = await _done(services.writer.undo(user, body.client_id, body.annotation_id))
    item = None
    if stored.created:
        undone = await run_in_threadpool(services.store.decisions.get, body.annotation_id)
        item = await run_in_threadpool(services.queue.take_back, user, undone)
    reply = annotation_json(stored.annotation)
    reply["item"] = item_json(item, services.slugs) if item else None
    reply["lease_id"] = item.lease.id if item else None
    return JSONResponse(reply, 201 if stored.created else 200)


@router.post("/leases/{lease_id}/renew", response_model=LeaseReply)
async def renew(lease_id: str, user: UserDep, services: ServicesDep) -> JSONResponse:
    """Keep a face that is still on screen; 404 when it is not one's own any more."""
    lease = await run_in_threadpool(services.queue.renew, user, lease_id)
    return JSONResponse({"lease_id": lease.id, "lease_expires_at": lease.expires_at.isoformat()})


@router.get("/history", response_model=HistoryReply)
def history(user: UserDep, services: ServicesDep, n: Annotated[int, Query(ge=1, le=100)] = 10) -> JSONResponse:
    """Return one's own latest answers that stand, newest first."""
    decisions = services.store.decisions
    answers = [decisions.get(annotation_id) for annotation_id in services.store.activity.latest(user.id, n)]
    items = [{**annotation_json(a), "image_url": image_url(a.image_id)} for a in answers]
    return JSONResponse({"items": items})


async def _done(future: Any) -> Any:
    """Wait for the writer. The answer is written even when the person's connection breaks meanwhile."""
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), WRITE_SECONDS)
