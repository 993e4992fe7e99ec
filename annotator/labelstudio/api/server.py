"""Every request that the project makes to a Label Studio server; nothing else talks to it.

Lists of thousands go past the SDK's typed models, which cost more than the server itself: 260 tasks/s through them,
2,000 without.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from annotator.errors import RefusedError, UnreachableError
from annotator.labelstudio.api.connection import Connection
from annotator.labelstudio.api.filters import Filter, above, among, annotated, data_equals, since, stamp

__all__ = [
    "PROJECT_DEFAULTS",
    "SECRET_HEADER",
    "WEBHOOK_ACTIONS",
    "Filter",
    "Server",
    "above",
    "among",
    "annotated",
    "data_equals",
    "since",
    "stamp",
]

SECRET_HEADER = "X-Annotator-Secret"
"""Carries the link's secret in every webhook that Label Studio sends us."""
WEBHOOK_ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
)
PROJECT_DEFAULTS = {
    "sampling": "Uncertainty sampling",
    "maximum_annotations": 1,
    "show_collab_predictions": True,
    "evaluate_predictions_automatically": False,  # else listing tasks makes the server ask the ML backend about each
}
_ITEMS_PER_SECOND = 50  # how slow a server may be with a batch before it counts as not answering
_NOT_FOUND = 404


class Server:
    """A Label Studio server. Every method raises `UnreachableError` (try later) or `RefusedError` (it says no).

    After an `UnreachableError` it is unknown whether the request was carried out. Nothing is repeated in here.
    """

    def __init__(self, url: str, api_key: str, *, timeout: float = 30.0) -> None:
        """Open a client for the server at `url`; nothing is sent yet. `timeout` in seconds, more for big batches.

        Raises:
            InputError: `url` is no address, the SDK is not installed, or the key has expired.
        """
        self._connection = Connection(url, api_key, timeout=timeout)
        self.url = self._connection.url

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client."""
        self._connection.close()

    @property
    def clock(self) -> datetime | None:
        """The server's own time at its last answer, in whole seconds; None where it does not tell."""
        return self._connection.clock

    # The server and its people

    def whoami(self) -> dict[str, Any]:
        """Return the account that the API key belongs to: id, email, username."""
        return dict(self._connection.sdk("users.whoami"))

    def version(self) -> str:
        """Return the server's version, such as 1.23.2."""
        return str(self._connection.sdk("versions.get")["release"])

    def users(self) -> list[dict[str, Any]]:
        """Return the accounts of the organization: id, email, username."""
        return [{key: user[key] for key in ("id", "email", "username")} for user in self._connection.sdk("users.list")]

    # Projects

    def create_project(self, title: str, label_config: str, *, description: str = "") -> dict[str, Any]:
        """Make a project with `PROJECT_DEFAULTS` and return it."""
        return dict(
            self._connection.sdk(
                "projects.create", title=title, label_config=label_config, description=description, **PROJECT_DEFAULTS
            )
        )

    def projects(self, *, page_size: int = 100) -> list[dict[str, Any]]:
        """Return id, title and description of every project that the account sees."""
        found: list[dict[str, Any]] = []
        for page in itertools.count(1):
            params = {"page": page, "page_size": page_size, "include": "id,title,description"}
            answer = self._connection.request("GET", "api/projects", params=params)
            found += answer["results"]
            if not answer["next"]:
                break
        return found

    def project(self, project_id: int) -> dict[str, Any]:
        """Return a project: title, label_config, model_version, task_number, sampling, ..."""
        return dict(self._connection.sdk("projects.get", id=project_id))

    def update_project(self, project_id: int, **fields: Any) -> dict[str, Any]:
        """Change fields of a project; a `model_version` without predictions in it is refused."""
        return dict(self._connection.sdk("projects.update", id=project_id, **fields))

    def delete_project(self, project_id: int) -> bool:
        """Delete a project with everything in it; False when it is gone already."""
        return self._deleted("projects.delete", project_id)

    # Tasks

    def import_tasks(self, project_id: int, tasks: Sequence[dict[str, Any]]) -> list[int]:
        """Add tasks (each `{"data": ..., "predictions": [...]}`) and return their ids in the same order."""
        if not tasks:
            return []
        answer = self._connection.request(
            "POST",
            f"api/projects/{project_id}/import",
            params={"return_task_ids": "true"},
            body=list(tasks),
            extra_seconds=len(tasks) / _ITEMS_PER_SECOND,
        )
        ids = [int(task_id) for task_id in answer["task_ids"]]
        if len(ids) != len(tasks):
            raise UnreachableError(f"{self.url}: {len(tasks)} tasks were sent and {len(ids)} came into being")
        return ids

    def delete_tasks(self, project_id: int, ids: Iterable[int]) -> None:
        """Delete tasks with their annotations and predictions; those that are gone already do no harm."""
        included = list(ids)
        if not included:  # to Label Studio an empty selection could mean all of them
            return
        self._connection.request(
            "POST",
            "api/dm/actions",
            params={"id": "delete_tasks", "project": project_id},
            body={"selectedItems": {"all": False, "included": included}},
            extra_seconds=len(included) / _ITEMS_PER_SECOND,
        )

    def tasks(
        self,
        project_id: int,
        *,
        include: Sequence[str],
        filters: Sequence[Filter] | None = None,
        ordering: Sequence[str] | None = None,
        page: int = 1,
        page_size: int = 1000,
    ) -> tuple[list[dict[str, Any]], int]:
        """Return one page of the tasks that meet all `filters`, and how many meet them in all.

        include: the fields wanted, of the task and of what is nested in it alike: `("id", "annotations", "result")`
            gives annotations with nothing but their id and result.
        ordering: such as `tasks:updated_at`, `-` in front of it for the other direction.
        """
        query: dict[str, Any] = {}
        if filters:
            query["filters"] = {"conjunction": "and", "items": list(filters)}
        if ordering:
            query["ordering"] = list(ordering)
        params = {
            "project": project_id,
            "page": page,
            "page_size": page_size,
            "include": ",".join(include),
            "fields": "all",
            "resolve_uri": "false",
            "query": json.dumps(query),
        }
        answer = self._connection.request(
            "GET", "api/tasks", params=params, extra_seconds=page_size / _ITEMS_PER_SECOND
        )
        return list(answer["tasks"]), int(answer["total"])

    def iter_tasks(
        self,
        project_id: int,
        *,
        include: Sequence[str],
        filters: Sequence[Filter] = (),
        after: int = 0,
        page_size: int = 1000,
    ) -> Iterator[dict[str, Any]]:
        """Yield the tasks that meet `filters`, by ascending id from above `after`.

        Each page starts behind the last id, not at a page number: tasks that are added or deleted meanwhile neither
        hide others nor show them twice.
        """
        wanted = include if "id" in include else (*include, "id")
        while True:
            found, _ = self.tasks(
                project_id,
                include=wanted,
                filters=[*filters, above(after)],
                ordering=["tasks:id"],
                page_size=page_size,
            )
            yield from found
            if len(found) < page_size:
                return
            after = int(found[-1]["id"])

    # Predictions

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Add predictions (each with `task`, `model_version`, `score`, `result`) and return how many were taken.

        The server leaves out those that do not fit the project without a word: compare the count.
        """
        if not predictions:
            return 0
        answer = self._connection.request(
            "POST",
            f"api/projects/{project_id}/import/predictions",
            body=list(predictions),
            extra_seconds=len(predictions) / _ITEMS_PER_SECOND,
        )
        return int(answer["created"])

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Return the number of stored predictions of each model version."""
        answer = self._connection.request(
            "GET", f"api/projects/{project_id}/model-versions", params={"extended": "true"}
        )
        return {str(version["model_version"]): int(version["count"]) for version in answer["static"]}

    def delete_model_version(self, project_id: int, model_version: str) -> None:
        """Delete all predictions of a version; the project's own version is unset when it is this one."""
        self._connection.request(
            "DELETE",
            f"api/projects/{project_id}/model-versions",
            body={"model_version": model_version},
            extra_seconds=10 * self._connection.timeout,
        )

    # Annotations

    def create_annotation(self, task_id: int, body: dict[str, Any]) -> dict[str, Any]:
        """Add an annotation (`result`, `completed_by`, `unique_id`, `import_id`, ...); a repeated unique_id is 409."""
        return dict(self._connection.sdk("annotations.create", id=task_id, **body))

    def update_annotation(self, annotation_id: int, body: dict[str, Any]) -> dict[str, Any]:
        """Change an annotation."""
        return dict(self._connection.sdk("annotations.update", id=annotation_id, **body))

    def delete_annotation(self, annotation_id: int) -> bool:
        """Delete an annotation; False when it is gone already."""
        return self._deleted("annotations.delete", annotation_id)

    def annotation(self, annotation_id: int) -> dict[str, Any] | None:
        """Return an annotation, None when there is none with this id."""
        try:
            return dict(self._connection.sdk("annotations.get", id=annotation_id))
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    # Pictures

    def upload(self, project_id: int, files: Sequence[tuple[str, bytes, str]]) -> list[tuple[int, str]]:
        """Store files (name, content, media type) and return id and path of each, in the same order.

        The path is what a task's image says: `/data/upload/<project>/<8 hex>-<name>`.
        """
        if not files:
            return []
        answer = self._connection.request(
            "POST",
            f"api/projects/{project_id}/import",
            params={"commit_to_project": "false"},
            files=[(f"f{index}", file) for index, file in enumerate(files)],
            extra_seconds=len(files) / _ITEMS_PER_SECOND,
        )
        ids = [int(upload_id) for upload_id in answer["file_upload_ids"]]
        params = {"ids": json.dumps(ids)}
        stored = self._connection.request("GET", f"api/projects/{project_id}/file-uploads", params=params)
        paths = {int(upload["id"]): f"/data/{upload['file']}" for upload in stored}
        if len(ids) != len(files) or not set(ids) <= set(paths):
            raise UnreachableError(f"{self.url}: {len(files)} files were sent and {len(paths)} are stored")
        return [(upload_id, paths[upload_id]) for upload_id in ids]

    def uploads(self, project_id: int) -> list[dict[str, Any]]:
        """Return every stored file of a project: id, file (`upload/<project>/<8 hex>-<name>`), size."""
        return list(self._connection.sdk("files.list", id=project_id, all_=True))

    def delete_upload(self, upload_id: int) -> bool:
        """Delete a stored file; False when it is gone already."""
        return self._deleted("files.delete", upload_id)

    def local_storage(self, project_id: int, path: str, title: str) -> int:
        """Let a project show the files below `path` on the server's machine; return the storage's id.

        One that is there already is taken. Without it `/data/local-files/?d=...` answers 404.
        """
        for storage in self._connection.sdk("import_storage.local.list", project=project_id):
            if str(storage["path"]).rstrip("/") == path.rstrip("/"):
                return int(storage["id"])
        made = self._connection.sdk(
            "import_storage.local.create", project=project_id, path=path, title=title, use_blob_urls=True
        )
        return int(made["id"])

    # What Label Studio calls

    def webhooks(self, project_id: int) -> list[dict[str, Any]]:
        """Return the webhooks of a project: id, url, actions, is_active. Their headers, which hold the secret, not."""
        found = self._connection.sdk("webhooks.list", project=str(project_id))
        return [
            {key: value for key, value in webhook.items() if key != "headers"}
            for webhook in found
            if webhook["project"] == project_id
        ]

    def create_webhook(self, project_id: int, url: str, secret: str) -> int:
        """Have changes of a project announced at `url`, with `SECRET_HEADER` but not what changed; return its id."""
        made = self._connection.sdk(
            "webhooks.create",
            project=project_id,
            url=url,
            send_payload=False,
            send_for_all_actions=False,
            headers={SECRET_HEADER: secret},
            actions=list(WEBHOOK_ACTIONS),
            is_active=True,
        )
        return int(made["id"])

    def delete_webhook(self, webhook_id: int) -> bool:
        """Delete a webhook; False when it is gone already."""
        return self._deleted("webhooks.delete", webhook_id)

    def backends(self, project_id: int) -> list[dict[str, Any]]:
        """Return the ML backends of a project: id, url, title, state. Each is asked for its health first."""
        return list(self._connection.sdk("ml.list", project=project_id))

    def create_backend(self, project_id: int, url: str, user: str, password: str, title: str) -> int:
        """Connect the ML backend at `url` with basic auth, not interactive; return its id.

        The server calls its `/health` and `/setup` before it answers. A project without a model version takes `title`.
        """
        made = self._connection.sdk(
            "ml.create",
            project=project_id,
            url=url,
            title=title,
            auth_method="BASIC_AUTH",
            basic_auth_user=user,
            basic_auth_pass=password,
            is_interactive=False,
        )
        return int(made["id"])

    def delete_backend(self, backend_id: int) -> bool:
        """Disconnect an ML backend; False when it is gone already."""
        return self._deleted("ml.delete", backend_id)

    def _deleted(self, what: str, which: int) -> bool:
        try:
            self._connection.sdk(what, id=which)
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return True
