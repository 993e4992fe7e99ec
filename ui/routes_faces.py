"""Faces: their pixels, what is known of them, which others look alike."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from ui.models import ImageReply, NeighboursReply, annotation_json, image_url
from ui.routes_session import ServicesDep, UserDep

router = APIRouter(tags=["faces"])

_FOREVER = "private, max-age=31536000, immutable"
_FOR_A_WHILE = "private, max-age=600"


@router.get("/images/{image_id}", response_model=ImageReply)
def image(image_id: str, user: UserDep, services: ServicesDep) -> JSONResponse:
    """Return a face's facts and one's own answers to it; what others answered stays hidden."""
    record = services.store.images.by_id(image_id)
    answers = services.store.decisions.list(row=record.row, user_id=user.id)
    return JSONResponse(
        {
            "image_id": record.image_id,
            "image_url": image_url(record.image_id),
            "width": record.width,
            "height": record.height,
            "split": record.split,
            "state": record.state,
            "answers": [annotation_json(annotation) for annotation in answers],
        }
    )


@router.get(
    "/images/{image_id}/file",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}},
)
async def pixels(
    image_id: str, request: Request, user: UserDep, services: ServicesDep, small: bool = False
) -> Response:
    """Return the picture itself: the original bytes when they are what they claim to be, else the cached copy.

    A face that was cut out of a photo is cut from the original again; with `small` the cached copy is returned at once.
    """
    record = await run_in_threadpool(services.faces.record, image_id)
    # An image id names one picture for good, so its id is its version.
    version = f'"{record.image_id}-small"' if small else f'"{record.image_id}"'
    headers = {"Cache-Control": _FOREVER, "ETag": version, "Vary": "Cookie, Authorization"}
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers=headers)
    file = await services.faces.read(record, small=small)
    if file.stands_in:
        # The original may come back.
        headers["Cache-Control"] = _FOR_A_WHILE
        del headers["ETag"]
    headers["Content-Disposition"] = "inline"
    return Response(file.data, media_type=file.media_type, headers=headers)


@router.get("/images/{image_id}/neighbours", response_model=NeighboursReply)
def neighbours(image_id: str, user: UserDep, services: ServicesDep) -> JSONResponse:
    """Return the nearest labeled faces and the prototypes of the classes; never the face itself or its copies.

    Nothing is returned for a face that one is to answer blind.
    """
    record = services.store.images.by_id(image_id)
    if services.queue.is_blind(user, record.group):
        return JSONResponse({"neighbours": [], "prototypes": []})
    return JSONResponse(services.neighbours.of(record))
