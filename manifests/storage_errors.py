"""What went wrong in a store, in one line: what, where, what to do, and whether trying again can help.

Every library says it in its own way; here its text is only searched for the HTTP status and the store's error code, and
never repeated, since it may carry signed URLs and keys. What no retry mends is told at once (a wrong key takes
milliseconds, not the retry time-out).
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>|\((\w+)\) when calling")
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_BUSY_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "NoSuchUpload", "ServerBusy"}
_KEYS = {
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "MissingSecurityHeader",
    "SignatureDoesNotMatch",
}
_BY_CODE = {
    "RequestTimeTooSkewed": "this machine's clock is too far from the store's; set the clock (NTP) and run again",
    "NoSuchBucket": "there is no such bucket; create it or mend the URL",
    "ContainerNotFound": "there is no such container; create it or mend the URL",
    "InvalidBucketName": "that is no name for a bucket; mend the URL",
    "PermanentRedirect": "the bucket lies in another region; set storage.region",
    "EntityTooLarge": "the object is too large for the store",
    "QuotaExceeded": "the store's quota is used up; free some space, then run it again",
    "XMinioStorageFull": "the store is full; free some space, then run it again",
}
_BY_ERRNO = {
    errno.ENOSPC: "the disk is full; free some space, then run it again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run it again",
    errno.EROFS: "the file system is read-only; take another root or mount it for writing",
    errno.EACCES: "not permitted; look at the folder's owner and mode",
    errno.EPERM: "not permitted; look at the folder's owner and mode",
    errno.ENOTDIR: "a part of the path is a file, not a folder; mend the path",
    errno.EISDIR: "it is a folder",
}
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOTCONN, errno.EHOSTDOWN)  # and of a mount that is gone
_NO_CREDENTIALS = (
    "no credentials were found, or they could not be fetched; set them in the environment (AWS_*, "
    "GOOGLE_APPLICATION_CREDENTIALS, AZURE_*), or storage.anonymous for a public bucket"
)
_SIGNS_OF_NO_CREDENTIALS = ("token request", "instance credentials", "NoCredentials", "Unable to locate credentials")
_BROKEN = (
    "error sending request",
    "error decoding response body",
    "HTTP error",
    "connection",
    "timed out",
    "timeout",
    "reset by peer",
    "broken pipe",
    "end of file",
    "incomplete",
    "ended early",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error of a store's library means.

    `mends` says that the same request may work a little later, `everywhere` that all others would fail likewise.
    """

    why: str
    mends: bool = False
    missing: bool = False
    everywhere: bool = False


class ShortReadError(Exception):
    """The store sent fewer bytes than the object or range holds."""


class ConflictError(Exception):
    """The store refused a conditional write because another request for the same name was on its way."""


class ForkedProcessError(Exception):
    """This process was forked from one whose client had begun to work: its threads are gone."""


def fault_of(error: BaseException, verb: str) -> Fault:
    """Say what an exception of a store's library means for what was being done (`read`, `write`, …)."""
    text = str(error)
    code = next((first or second for first, second in _CODE.findall(text)), "")
    status = int(found.group(1)) if (found := _STATUS.search(text)) else _status_of(error)
    if isinstance(error, ForkedProcessError):
        why = "this process was forked from one that had used the store; start it anew (spawn) instead"
        return Fault(why, everywhere=True)
    if isinstance(error, ConflictError):
        return Fault("the store answers 409 ConditionalRequestConflict", mends=True)
    if isinstance(error, ShortReadError):
        return Fault("the store sends fewer bytes than it names", mends=True)
    if code in _BY_CODE:
        return Fault(_BY_CODE[code])
    if code in _KEYS or status == 401 or type(error).__name__ == "UnauthenticatedError":
        why = f"the store refuses the credentials ({code or 401}); set the right ones for this bucket"
        return Fault(why, everywhere=True)
    if any(sign in text or sign in type(error).__name__ for sign in _SIGNS_OF_NO_CREDENTIALS):
        return Fault(_NO_CREDENTIALS, everywhere=True)
    if code in _BUSY_CODES or status in _TRANSIENT_STATUS:
        return Fault(f"the store answers {' '.join(str(part) for part in (status, code) if part)}", mends=True)
    if status == 403 or type(error).__name__ in ("PermissionDeniedError", "PermissionError"):
        return _forbidden(error, code, verb)
    if isinstance(error, FileNotFoundError):
        return Fault("not there", missing=True)
    if status is not None:
        return Fault(f"the store answers {' '.join(str(part) for part in (status, code) if part)}")
    return _without_answer(error, text)


def _forbidden(error: BaseException, code: str, verb: str) -> Fault:
    if isinstance(error, OSError) and error.errno in _BY_ERRNO and not code:
        return Fault(_BY_ERRNO[error.errno])
    read_only = "; is the store read-only for them?" if verb in ("write", "delete") else ""
    return Fault(f"these credentials may not {verb} there ({code or 403}){read_only} See docs/storage.md, permissions")


def _without_answer(error: BaseException, text: str) -> Fault:
    """Explain a fault that carries no HTTP answer: of the file system, of the network, or of the library."""
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return Fault(_BY_ERRNO[error.errno])
    broken = any(sign.lower() in text.lower() for sign in _BROKEN)
    kind = type(error).__name__
    if broken or isinstance(error, ConnectionError | TimeoutError) or "Timeout" in kind or "Connection" in kind:
        refused = "refused" in text.lower() or kind == "EndpointConnectionError"
        return Fault("the store cannot be reached" if refused else "the connection breaks or stands still", mends=True)
    if isinstance(error, OSError) and error.strerror:
        return Fault(error.strerror, everywhere=error.errno in _OF_THE_MACHINE)
    if isinstance(error, ValueError) and "path" in text:
        return Fault("that is no name for an object here")
    return Fault(f"{type(error).__name__} in the library that talks to it (--debug and storage.backend may tell more)")


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status an exception carries as botocore's and aiohttp's do."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None)
    return status if isinstance(status, int) else None
