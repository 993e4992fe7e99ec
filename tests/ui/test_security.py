"""Who gets in: Host, Origin, sign-in, roles, Gradio's closed doors, headers."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from annotator import auth
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ui.conftest import PASSWORD, Running, running

COOKIE = "annotator_session"


def sign_in(client: httpx.Client, name: str = "alice", password: str = PASSWORD) -> httpx.Response:
    return client.post("/api/v1/login", json={"username": name, "password": password})


def first_image(server: Running) -> str:
    return server.store.images.by_rows([int(server.store.images.table().rows[0])])[0].image_id


def test_without_accounts_the_local_user_labels(untouched: Running) -> None:
    with untouched.client() as client:
        assert client.get("/api/v1/me").json() == {"name": "local", "role": "admin", "local": True}
        assert client.get("/").status_code == 200


def test_with_accounts_nothing_is_open(served: Running) -> None:
    with served.account("alice"), served.client() as stranger:
        image = f"/api/v1/images/{first_image(served)}"
        for path in ("next", "status", "live", "history", "me", "nothing"):
            assert stranger.get(f"/api/v1/{path}").status_code == 401, path
        for path in (image, f"{image}/file", f"{image}/neighbours", "/config", "/gradio_api/startup-events"):
            assert stranger.get(path).status_code == 401, path
        assert stranger.post("/api/v1/annotations", json={}).status_code == 401
        assert stranger.post("/gradio_api/run/predict", json={}).status_code == 401
        page = stranger.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 303
        assert page.headers["location"] == "/login?next=/"
        assert stranger.get("/login").status_code == 200
        assert stranger.get("/static/login.js").status_code == 200
        assert stranger.get("/api/v1/openapi.json").status_code == 200
        assert stranger.get("/api/v1/docs").status_code == 200


def test_one_session_serves_page_and_routes(served: Running) -> None:
    served.account("alice")
    with served.client() as browser:
        reply = sign_in(browser)
        cookie = reply.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        assert browser.cookies[COOKIE] == reply.json()["token"]
        assert browser.get("/api/v1/me").json() == {"name": "alice", "role": "annotator", "local": False}
        assert browser.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert browser.get("/config").status_code == 200
        out = browser.post("/api/v1/logout", headers={"Origin": served.url})
        assert out.status_code == 204
        assert browser.get("/api/v1/me").status_code == 401


def test_a_cookie_alone_writes_nothing(served: Running) -> None:
    served.account("alice")
    with served.client() as browser:
        token = sign_in(browser).json()["token"]
        body = {"client_id": "c", "image_id": first_image(served), "kind": "skip"}
        for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            reply = browser.post("/api/v1/annotations", json=body, headers=headers)
            assert reply.status_code == 403, headers
        assert browser.post("/gradio_api/run/predict", json={}, headers={}).status_code == 403
        assert served.store.decisions.count() == 0
        assert browser.post("/api/v1/annotations", json=body, headers={"Origin": served.url}).status_code == 201
    with served.client(token) as script:
        assert script.post("/api/v1/annotations", json=body | {"client_id": "d"}).status_code == 201


def test_another_site_cannot_write_in_single_user_mode(untouched: Running) -> None:
    body = {"client_id": "c", "image_id": first_image(untouched), "kind": "skip"}
    with untouched.client() as client:
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            assert client.post("/api/v1/annotations", json=body, headers=headers).status_code == 403, headers
    assert untouched.store.decisions.count() == 0


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", "", "["]
)
def test_a_foreign_host_is_refused(untouched: Running, host: str) -> None:
    with untouched.client() as client:
        assert client.get("/api/v1/me", headers={"Host": host}).status_code == 400
        assert client.get("/", headers={"Host": host}).status_code == 400


def test_loopback_names_and_allowed_hosts_are_served(tmp_path: Path, workspace: Workspace) -> None:
    path = workspace.root / "workspace.yaml"
    path.write_text(path.read_text().replace("allowed_hosts: []", "allowed_hosts: [faces.lab.example]"))
    again = Workspace.open(workspace.root)
    with LabelStore.open(again) as store, running(again, store) as server, server.client() as client:
        for host in ("localhost", "127.0.0.1:99", "[::1]:7860", "faces.lab.example", "FACES.lab.example:443"):
            assert client.get("/api/v1/me", headers={"Host": host}).status_code == 200, host
        assert client.get("/api/v1/me", headers={"Host": "other.lab.example"}).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=workspace.yaml",
        "/gradio_api/file/annotator.db",
        "/file=/etc/passwd",
        "/gradio_api/proxy=http://example.org/",
        "/gradio_api/upload_progress?upload_id=x",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/token",
        "/gradio_api/custom_component/a/client/b/c.js",
        "/gradio_api/stream/a/1/2/playlist.m3u8",
        "/gradio_api/mcp/",
        "/monitoring",
        "/assets/..%2f..%2froutes.py",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/openapi.json",
        "/docs",
    ],
)
def test_gradio_opens_no_other_door(untouched: Running, path: str) -> None:
    with untouched.client() as client:
        assert client.get(path).status_code == 404


def test_gradio_takes_no_uploads(untouched: Running) -> None:
    with untouched.client() as client:
        files = {"files": ("x.txt", b"x")}
        assert client.post("/gradio_api/upload", files=files).status_code == 404
        assert client.post("/gradio_api/component_server", json={}).status_code == 404
        assert client.post("/gradio_api/process_recording", files=files).status_code == 404


def test_every_reply_carries_the_headers(untouched: Running) -> None:
    with untouched.client() as client:
        for path in ("/", "/login", "/api/v1/me", "/api/v1/nothing", "/static/login.js", "/nowhere"):
            headers = client.get(path, headers={"Origin": "http://localhost:1"}).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["x-frame-options"] == "DENY", path
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
            assert "access-control-allow-origin" not in headers, path
        assert "unsafe" not in client.get("/login").headers["content-security-policy"]
        assert client.get("/api/v1/me").headers["cache-control"] == "no-store"


def test_a_disabled_account_is_out_within_seconds(served: Running, wait_until: Callable[..., None]) -> None:
    alice = served.account("alice")
    assert alice.get("/api/v1/me").status_code == 200
    served.store.accounts.set_disabled("alice", True)
    began = time.monotonic()
    wait_until(lambda: alice.get("/api/v1/me").status_code == 401)
    assert time.monotonic() - began < 2 * auth.CACHE_SECONDS + 1
    with served.client() as client:
        assert sign_in(client).status_code == 401


def test_the_first_account_ends_single_user_mode(served: Running, wait_until: Callable[..., None]) -> None:
    with served.client() as client:
        assert client.get("/api/v1/me").status_code == 200
        served.store.accounts.add("alice", "admin", auth.hash_password(PASSWORD))
        wait_until(lambda: client.get("/api/v1/me").status_code == 401)


def test_wrong_passwords_run_into_a_wall(served: Running) -> None:
    served.account("alice")
    with served.client() as client:
        replies = [sign_in(client, password=f"guess {n}").status_code for n in range(12)]
        assert replies[:7] == [401] * 7
        assert replies[-1] == 429
        blocked = sign_in(client)
        assert blocked.status_code == 429
        assert int(blocked.headers["retry-after"]) >= 1
        # Another name from the same address is still let in.
        assert sign_in(client, "nobody").status_code == 401


def test_names_are_not_told_apart(served: Running) -> None:
    served.account("alice")
    with served.client() as client:
        known, unknown = sign_in(client, "alice", "wrong"), sign_in(client, "mallory", "wrong")
        odd = sign_in(client, "a\0b' OR 1=1 --", "wrong")
        assert known.status_code == unknown.status_code == odd.status_code == 401
        assert known.json() == unknown.json() == odd.json()

        def seconds(name: str) -> float:
            began = time.perf_counter()
            sign_in(client, name, "wrong")
            return time.perf_counter() - began

        # An unknown name costs a verification too: at least a good part of a known one's.
        assert min(seconds("mallory") for _ in range(3)) > 0.3 * min(seconds("alice") for _ in range(3))


def test_roles(served: Running) -> None:
    annotator, reviewer = served.account("anna"), served.account("rob", "reviewer")
    assert annotator.post("/api/v1/retrain", json={}).status_code == 403
    job = reviewer.post("/api/v1/retrain", json={"method": "fixmatch"})
    assert job.status_code == 202
    assert served.store.learning.jobs()[0].payload == {"by": "rob", "method": "fixmatch"}


def test_an_api_token_lives_until_it_is_withdrawn(served: Running) -> None:
    alice = served.account("alice")
    token = alice.post("/api/v1/tokens", json={"days": 1}).json()["token"]
    with served.client(token) as script:
        assert script.get("/api/v1/me").json()["name"] == "alice"
        assert script.post("/api/v1/logout").status_code == 204
        assert script.get("/api/v1/me").status_code == 401
    assert alice.get("/api/v1/me").status_code == 200
    assert token not in (served.workspace.root / "annotator.db").read_bytes().decode("latin-1")


def test_markup_in_names_is_data(served: Running, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    client = served.account(name)
    assert client.get("/api/v1/me").json()["name"] == name
    with served.client() as stranger:
        page = stranger.get("/login", params={"next": '"><script>alert(1)</script>'})
        assert "<script>alert" not in page.text
        assert "https://evil" not in stranger.get("/login", params={"next": "https://evil.example"}).text


def test_the_description_is_complete(untouched: Running) -> None:
    with untouched.client() as client:
        schema = client.get("/api/v1/openapi.json").json()
        page = client.get("/api/v1/docs").text
    wanted = {"login", "logout", "me", "next", "annotations", "undo", "history", "status", "live", "retrain", "tokens"}
    wanted |= {"leases/{lease_id}/renew", "images/{image_id}", "images/{image_id}/file", "images/{image_id}/neighbours"}
    linked = {f"/labelstudio/{path}" for path in ("health", "setup", "predict", "versions", "webhook")}
    assert set(schema["paths"]) == {f"/api/v1/{path}" for path in wanted} | linked
    assert "<script" not in page
    assert "http" not in page.replace("/api/v1", "").replace("https", "http").split("<body>")[0]
    for path in wanted:
        assert f"/api/v1/{path}" in page
    assert json.dumps(schema)
