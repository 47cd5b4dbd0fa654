"""Says in a user's words what a store's file system says in errno numbers and provider exceptions.

One place, because the three back ends raise three families of errors for the same conditions: no
space, no permission, no such bucket, no answer. Provider exceptions are told apart by their class
names, so that no provider's library has to be imported to describe an error.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.errors import Unreachable, UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_CREDENTIALS = ("Credential", "RefreshError", "UnauthorizedSSOToken", "TokenRetrieval", "SSOToken")
_SILENT = (
    "Endpoint",
    "Connect",
    "Timeout",
    "ClientConnector",
    "HTTPClientError",
    "ServerDisconnected",
    "TransportError",
)
_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL (S3), or GOOGLE_APPLICATION_CREDENTIALS (gs)"
)

Method = TypeVar("Method", bound=Callable[..., Any])


def readable_bytes(count: float) -> str:
    """`count` bytes in the largest unit that keeps the figure above one (decimal units)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def no_space(url: str, path: str, needed_bytes: int | None = None, free_bytes: int | None = None) -> UserError:
    """The error for a full store: which store, which file, how many bytes were wanted and are free."""
    wanted = f" ({readable_bytes(needed_bytes)} to write)" if needed_bytes is not None else ""
    free = f", {readable_bytes(free_bytes)} free" if free_bytes is not None else ""
    where = f" while writing {path}" if path else ""
    return UserError(
        f"no space left in the store {url}{free}{where}{wanted}",
        "free some space (`triptych gc` lists what can go) or choose another store with --store",
    )


def provider_code(error: BaseException) -> str:
    """The provider's own error code (`NoSuchBucket`, `PreconditionFailed`, …), or an empty string."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def explain(error: BaseException, url: str, free_bytes: int | None = None) -> UserError | None:
    """Return what to tell the user about an error of the store at `url`; None where it looks like a bug."""
    if isinstance(error, UserError):
        return error
    kind = type(error).__name__
    number = getattr(error, "errno", None)
    path = str(getattr(error, "filename", None) or "")
    if isinstance(error, OSError) and number in NO_SPACE:
        return no_space(url, path, free_bytes=free_bytes)
    if provider_code(error) == "NoSuchBucket":
        return Unreachable(
            f"the store {url} names a bucket that does not exist", "create the bucket, or correct --store"
        )
    if isinstance(error, PermissionError) or number == errno.EROFS:
        reason = "the file system is read-only" if number == errno.EROFS else "permission denied"
        where = f": {path}" if path else f" ({error})" if str(error) else ""
        return UserError(
            f"{reason} in the store {url}{where}", "give this user write access, or choose another --store"
        )
    if any(part in kind for part in _CREDENTIALS):
        return Unreachable(f"the store {url} needs credentials: {error}", f"set {_ENVIRONMENT}")
    if isinstance(error, ConnectionError | TimeoutError) or (
        any(part in kind for part in _SILENT) and type(error).__module__.partition(".")[0] != "builtins"
    ):
        return Unreachable(
            f"the store {url} does not answer: {error or kind}", f"check the network, --store and {_ENVIRONMENT}"
        )
    if provider_code(error) or number in (errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.ESTALE):
        return Unreachable(
            f"the store {url} answered with an error: {error or kind}", "try again; the state is in the store"
        )
    return None


def told(method: Method) -> Method:
    """Decorator for Store methods: errors of the file system leave as UserError, bugs as they are."""

    @functools.wraps(method)
    def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            explained = self.explain(error)
            if explained is None:
                raise
            raise explained from error

    return inner  # type: ignore[return-value]
