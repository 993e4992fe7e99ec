"""Faces: their pixels, what is known of them, which others look alike."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ui.models import ImageReply, NeighboursReply, annotation_json, image_url
from ui.routes_session import ServicesDep, UserDep

router = APIRouter(tags=["faces"])

_FOREVER = "private, max-age=31536000, immutable"


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
def pixels(image_id: str, request: Request, user: UserDep, services: ServicesDep) -> Response:
    """Return the picture itself: the original bytes when they are what they claim to be, else the cached copy."""
    record = services.faces.record(image_id)
    # An image id names one picture for good, so its id is its version.
    headers = {"Cache-Control": _FOREVER, "ETag": f'"{record.image_id}"', "Vary": "Cookie, Authorization"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    file = services.faces.read(record)
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
