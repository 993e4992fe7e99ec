"""Answers from Label Studio's JSON, without a server: matched, checked, stored once; what is left out says why.

A second import of the same file, or of a later export of the same project, adds only what is new. Nothing is guessed:
an annotation of a picture or person that is not known here, or that is not exactly one answer, is written to
`<file>.left-out.jsonl` with the reason.
"""

import json
import math
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Pairs
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from annotator.consensus import COUNTING
from annotator.errors import AnnotatorError, InputError, WorkspaceError
from annotator.labelstudio.config.controls import Mapping
from annotator.labelstudio.config.generated import own_mapping, read_config
from annotator.labelstudio.config.results import MalformedResultError, Said, expressed, parse_result
from annotator.labelstudio.linking.matching import ImageIndex
from annotator.records import Annotation, Answer, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.answers import DAY_MS
from annotator.store.decisions import FOREIGN
from annotator.store.pacing import Pace

PREFIX = "lsfile:"
"""What the client_ids of answers from files begin with."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SAME_JSON = "in Label Studio choose Export, JSON"


@dataclass(slots=True)
class FileReport:
    """What became of a file.

    unmatched: tasks that show no image of this workspace, answered or not. stored, known: annotations that are new
    here, and that were here already. left_out: how many annotations were not taken, by reason; `left_out_path` has
    each. problems: what of the labeling configuration does not fit.
    """

    tasks: int = 0
    unmatched: int = 0
    annotations: int = 0
    stored: int = 0
    known: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_path: Path | None = None
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"{self.stored} answers stored, {self.known} were here already, of {self.annotations} annotations in "
            f"{self.tasks} tasks ({self.unmatched} tasks show no face of this workspace)"
        ]
        lines += [f"left out: {number} because {why}" for why, number in self.left_out.most_common()]
        if self.left_out_path is not None:
            lines.append(f"each of them with its reason: {self.left_out_path}")
        return "\n".join([*lines, *self.problems])

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "tasks": self.tasks,
            "unmatched": self.unmatched,
            "annotations": self.annotations,
            "stored": self.stored,
            "known": self.known,
            "left_out": dict(self.left_out.most_common()),
            "left_out_path": None if self.left_out_path is None else str(self.left_out_path),
            "problems": self.problems,
        }


@dataclass(frozen=True, slots=True)
class _Given:
    """An annotation that is an answer: of whom, when, about which row."""

    task_id: object
    annotation_id: int
    import_id: object
    row: int
    user: User
    answer: Answer
    at: datetime


class _LeftOutError(Exception):
    """An annotation is not taken; `kind` is the reason without its particulars."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_answers(
    workspace: Workspace,
    store: LabelStore,
    path: Path,
    users: Pairs[str, str] | None = None,
    *,
    config: str | None = None,
    overrides: Pairs[str, str] | None = None,
) -> FileReport:
    """Store the answers of a Label Studio JSON export.

    Args:
        workspace: for its classes.
        store: the open store.
        path: the export; "<file>.left-out.jsonl" is written beside it when something is left out.
        users: the name of an account here by email address there, or by the number that stands for a person where the
            export has no address, as those of Label Studio's community edition. Who has the same name here needs no
            entry. By default those of the linked project.
        config: the project's labeling configuration (XML); without it, the one that we generate.
        overrides: what choices of `config` mean, as for `read_config`.

    Raises:
        InputError: no such file, not Label Studio's JSON, a configuration that says no class, an unknown account.
        WorkspaceError: the store or the report cannot be written.
    """
    try:
        import ijson  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError("reading Label Studio's files needs: pip install 'annotator[labelstudio]'") from error
    taxonomy = workspace.settings.taxonomy
    report = FileReport()
    mapping = own_mapping(taxonomy)
    if users is None:
        link = store.exchange.link()
        users = link.settings.get("users", {}) if link is not None else {}
    if config is not None:
        mapping, report.problems = read_config(config, taxonomy, overrides)
    with ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        left_out = stack.enter_context(_LeftOut(path.with_name(f"{path.name}.left-out.jsonl"), report))
        reader = _Reader(store, mapping, users, report, left_out)
        try:
            for task in ijson.items(file, "item", use_float=True):
                reader.take(_checked(task, path))
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reader.flush()
            raise InputError(f"{path} is damaged behind task {report.tasks}: {error}; export it again") from error
        reader.flush()
    return report


class _Reader:
    """Turns tasks into answers and stores them in short commits."""

    def __init__(
        self, store: LabelStore, mapping: Mapping, users: Pairs[str, str], report: FileReport, left_out: "_LeftOut"
    ) -> None:
        self._store = store
        self._taxonomy = store.workspace.settings.taxonomy
        self._mapping = mapping
        self._report = report
        self._left_out = left_out
        self._people = _people(store, users)
        self._index = ImageIndex(store)
        self._pace = Pace(20)
        self._waiting: list[_Given] = []

    def take(self, task: dict[str, Any]) -> None:
        """Read a task and its annotations."""
        self._report.tasks += 1
        row = self._index.find(task.get("data"), self._mapping.data_key)
        self._report.unmatched += isinstance(row, str)
        annotations = task.get("annotations") or []
        if not isinstance(annotations, list):
            annotations = [annotations]
        for annotation in sorted(annotations, key=_order):
            self._report.annotations += 1
            try:
                if isinstance(row, str):
                    raise _LeftOutError("the picture is not known here", row)
                self._waiting.append(self._given(task, annotation, row))
            except _LeftOutError as error:
                self._left_out.write(task.get("id"), annotation, error.kind, str(error))
        while len(self._waiting) >= self._pace.size:
            self._store_some()

    def flush(self) -> None:
        """Store what is waiting."""
        while self._waiting:
            self._store_some()

    def _given(self, task: Pairs[str, Any], annotation: object, row: int) -> _Given:
        if not isinstance(annotation, dict) or not _is_id(annotation.get("id")):
            raise _LeftOutError("it has no id", "the annotation has no id: it could not be told from others")
        user = self._user(annotation)
        at = _time(annotation.get("updated_at")) or _time(annotation.get("created_at"))
        if at is None:
            raise _LeftOutError("it has no time", "the annotation has neither updated_at nor created_at")
        try:
            said = parse_result(
                annotation.get("result"), annotation.get("was_cancelled") is True, self._mapping, self._taxonomy
            )
        except MalformedResultError as error:
            raise _LeftOutError("it is not exactly one answer", str(error)) from error
        project = annotation.get("project", task.get("project"))
        number = project if _is_id(project) else 0
        answer = Answer(
            client_id=f"{PREFIX}{number}:{annotation['id']}:{(at - _EPOCH) // timedelta(microseconds=1)}",
            image_id="",
            kind=said.kind,
            classes=said.classes,
            confidence=said.confidence,
            note=said.note,
            duration_ms=_milliseconds(annotation.get("lead_time")),
            source=FOREIGN,
        )
        return _Given(task.get("id"), annotation["id"], annotation.get("import_id"), row, user, answer, at)

    def _user(self, annotation: Pairs[str, Any]) -> User:
        """Return whose annotation it is: by the address or number there, else by the name in a file of ours."""
        by = annotation.get("completed_by")
        known = by if isinstance(by, dict) else {"id": by}
        words = [known.get("email"), known.get("id"), annotation.get("annotator")]
        for word in words:
            user = self._people.get(str(word).casefold()) if isinstance(word, str | int) else None
            if user is not None:
                return user
        named = next((word for word in words if word is not None), None)
        who = "nobody" if named is None else repr(named)
        raise _LeftOutError(
            "the person is not known here",
            f"it is by {who}, who has no account here: say who that is{'' if named is None else f' ({named}=NAME)'}",
        )

    def _store_some(self) -> None:
        """Store one short commit's worth of answers; leave out what its author has answered again since, here."""
        batch, self._waiting = self._waiting[: self._pace.size], self._waiting[self._pace.size :]
        images = {i.row: i.image_id for i in self._store.images.by_rows(list({g.row for g in batch}))}
        standing = self._store.exchange.standing({g.row for g in batch})
        wanted = []
        for given in batch:
            same = self._same(given, standing.get(given.row, []))
            later = _later(given, standing.get(given.row, []))
            if same:
                self._report.known += 1
            elif later is None:
                wanted.append(given)
            else:
                reason = f"{given.user.name} has answered this face again at {later.created_at.isoformat()}"
                self._left_out.write(given.task_id, {"id": given.annotation_id}, "its author answered again", reason)
        answers = [(g.user, replace(g.answer, image_id=images[g.row])) for g in wanted]
        began = time.perf_counter()
        outcomes = self._store.decisions.submit_many(answers, given_at=[g.at for g in wanted]) if wanted else []
        self._pace.took(len(wanted), time.perf_counter() - began)
        for given, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, AnnotatorError):
                self._left_out.write(given.task_id, {"id": given.annotation_id}, "it cannot be stored", str(outcome))
            else:
                self._report.stored += outcome.created
                self._report.known += not outcome.created

    def _same(self, given: _Given, standing: Iterable[Annotation]) -> bool:
        """Tell whether an answer is here already: read from a file before, or exported from here in the first place."""
        said = _said(given.answer)
        for annotation in standing:
            if annotation.user_id == given.user.id:
                if annotation.client_id == given.answer.client_id:
                    return True
                exported = annotation.id == given.import_id or annotation.created_at == given.at
                if exported and self._expressed(annotation) == said:
                    return True
        return False

    def _expressed(self, annotation: Annotation) -> Said | None:
        try:
            return expressed(_said(annotation), self._mapping, self._taxonomy)
        except InputError:
            return None


class _LeftOut:
    """The report of what is left out: a file that is there only when it has something to say."""

    def __init__(self, path: Path, report: FileReport) -> None:
        self._path = path
        self._report = report
        self._file: IO[str] | None = None

    def __enter__(self) -> "_LeftOut":
        with _writing(self._path):
            self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, task_id: object, annotation: object, kind: str, reason: str) -> None:
        """Add an annotation that is not taken."""
        named = annotation.get("id") if isinstance(annotation, dict) else None
        with _writing(self._path):
            if self._file is None:
                self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
            line = {"task": task_id, "annotation": named, "reason": reason}
            self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self._report.left_out[kind] += 1
        self._report.left_out_path = self._path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkspaceError(f"cannot write {path}: {error.strerror or error}") from error


def _opened(path: Path) -> IO[bytes]:
    """Open an export after a look at its first character."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    start = file.read(4096)
    if not start.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
        file.close()
        raise InputError(f"{path} is not a list of tasks, which Label Studio's JSON is: {_SAME_JSON}")
    file.seek(len(BOM_UTF8) if start.startswith(BOM_UTF8) else 0)
    return file


def _checked(task: object, path: Path) -> dict[str, Any]:
    """Return a task; what is none comes from another format."""
    if not isinstance(task, dict):
        raise InputError(f"{path} holds {type(task).__name__} where Label Studio's JSON has tasks: {_SAME_JSON}")
    if isinstance(task.get("data"), dict) and not ("annotations" not in task and "completions" in task):
        return task
    if "annotation_id" in task or "annotator" in task:
        raise InputError(f"{path} is JSON_MIN, which does not say who answered what: {_SAME_JSON}")
    raise InputError(f"{path} has a task without data and annotations, it is no JSON export: {_SAME_JSON}")


def _people(store: LabelStore, users: Pairs[str, str]) -> dict[str, User]:
    """Return who is meant by an address, a number or a name, without regard to case."""
    people = {user.name.casefold(): user for user in store.accounts.list()}
    for word, name in users.items():
        user = people.get(name.casefold())
        if user is None:
            raise InputError(f"{word}={name}: there is no account {name!r}; make one with: annotator users add")
        people[word.casefold()] = user
    return people


def _later(given: _Given, standing: Iterable[Annotation]) -> Annotation | None:
    """Return what the same person has said about the face since: it stays the one that counts."""
    if given.answer.kind not in COUNTING:
        return None
    mine = (a for a in standing if a.user_id == given.user.id and a.kind in COUNTING)
    return next((a for a in mine if a.created_at > given.at), None)


def _said(answer: Answer | Annotation) -> Said:
    return Said(answer.kind, answer.classes, answer.confidence, answer.note)


def _order(annotation: object) -> str:
    """Sort annotations by time, so that a person's last one is the one that counts."""
    at = _time(annotation.get("updated_at") or annotation.get("created_at")) if isinstance(annotation, dict) else None
    return "" if at is None else at.isoformat(timespec="microseconds")


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _milliseconds(seconds: object) -> int | None:
    """Return a time on screen; one of a day or more says that the page was left open."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return None
    milliseconds = round(seconds * 1000)
    return milliseconds if 0 <= milliseconds < DAY_MS else None


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
