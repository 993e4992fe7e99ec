"""Signing in and out, who I am, API tokens."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from annotator.errors import AuthError
from annotator.records import User
from ui.models import LoginBody, LoginReply, MeReply, TokenBody
from ui.security import COOKIE
from ui.services import Services

router = APIRouter(tags=["session"])


def services_of(request: Request) -> Services:
    """Return the running server's parts."""
    services: Services = request.app.state.services
    return services


def user_of(request: Request) -> User:
    """Return who asks; the gate has let nobody else through."""
    user: User | None = request.scope["state"]["user"]
    if user is None:
        raise AuthError("sign in first")
    return user


ServicesDep = Annotated[Services, Depends(services_of)]
UserDep = Annotated[User, Depends(user_of)]


@router.post("/login")
def login(body: LoginBody, request: Request, response: Response, services: ServicesDep) -> LoginReply:
    """Check name and password; set the session cookie and return the same token for `Authorization: Bearer`."""
    address = request.client.host if request.client else "unknown"
    user, token = services.auth.login(body.username, body.password, address)
    lifetime = timedelta(days=services.workspace.settings.server.session_days)
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(lifetime.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
        path="/",
    )
    return LoginReply(token=token, user=user.name, role=user.role, expires_at=datetime.now(UTC) + lifetime)


@router.post("/logout", status_code=204)
def logout(request: Request, services: ServicesDep) -> Response:
    """End this session, or withdraw this API token."""
    token: str | None = request.scope["state"]["token"]
    if token is not None:
        services.auth.logout(token)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/")
    return response


@router.get("/me")
def me(user: UserDep, services: ServicesDep) -> MeReply:
    """Tell who is signed in."""
    return MeReply(name=user.name, role=user.role, local=services.auth.single_user)


@router.post("/tokens", status_code=201)
def make_token(body: TokenBody, user: UserDep, services: ServicesDep) -> LoginReply:
    """Make an API token of one's own, for scripts. `POST logout` with it withdraws it."""
    lifetime = timedelta(days=body.days)
    token = services.auth.issue_token(user, lifetime)
    return LoginReply(token=token, user=user.name, role=user.role, expires_at=datetime.now(UTC) + lifetime)
