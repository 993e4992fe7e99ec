"""The errors of the project, as one tree.

    AnnotatorError
    ├── InputError           a value given by a person is wrong: the message names value and remedy (exit code 2)
    │   ├── ConflictError        a `client_id` that is another person's, an answer that is undone already
    │   ├── TaxonomyError        an unknown class, a malformed class file
    │   └── ImportSourceError    a source that cannot be read or is not what its format says
    ├── WorkspaceError       the workspace is missing, of another version, on a network file system, full
    │   ├── OverloadedError      too much is waiting to be written: nothing was stored, send it again
    │   └── WorkspaceBusyError   another process holds the workspace or the port
    ├── NotFoundError        an image, annotation, user or job that does not exist
    ├── AuthError            not signed in, wrong password, disabled account
    │   ├── ForbiddenError       signed in, but the role does not allow it
    │   └── TooManyAttemptsError too many wrong passwords: wait before the next one
    ├── LearnerError         a training run failed; the message carries the last lines of its log
    └── LabelStudioError     what Label Studio answered, or that it did not
        ├── UnreachableError     no answer, or one that says "later" (5xx, 429): the same request may be sent again
        └── RefusedError         it refused this request (4xx); sent again unchanged it is refused again

`ValueError` stays for programming errors on arguments inside the code; whatever crosses a boundary (command line,
HTTP, file) is one of these.
"""


class AnnotatorError(Exception):
    """Base of every error that the project raises on purpose."""


class InputError(AnnotatorError):
    """A value given by a person is wrong; the message names the value and the remedy."""


class ConflictError(InputError):
    """The value contradicts what is stored: a `client_id` of another person, an answer that is undone already."""


class TaxonomyError(InputError):
    """An unknown class or a malformed class file."""


class ImportSourceError(InputError):
    """An import source that cannot be read or does not have the layout its format promises."""


class WorkspaceError(AnnotatorError):
    """The workspace is missing, of another version, on a network file system, or its disk is full."""


class OverloadedError(WorkspaceError):
    """Too much is waiting to be written; nothing was stored, the same request may be sent again."""


class WorkspaceBusyError(WorkspaceError):
    """Another process holds the workspace or the port."""


class NotFoundError(AnnotatorError):
    """An image, annotation, user or job that does not exist."""


class AuthError(AnnotatorError):
    """Not signed in, a wrong password, or a disabled account."""


class ForbiddenError(AuthError):
    """Signed in, but the role does not allow it."""


class TooManyAttemptsError(AuthError):
    """Too many wrong passwords for this name or from this address; the message says how long to wait."""


class LearnerError(AnnotatorError):
    """A training run failed; the message carries the last lines of its log."""


class LabelStudioError(AnnotatorError):
    """Label Studio answered something that the request cannot be finished with, or nothing at all."""


class UnreachableError(LabelStudioError):
    """No answer, or one that says "later" (network, timeout, 408, 429, 5xx); it may have been carried out or not."""


class RefusedError(LabelStudioError):
    """Label Studio refused this request; `status` is its HTTP status, 400 to 499 or a redirect."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
