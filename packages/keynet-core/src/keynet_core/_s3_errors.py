"""What boto3 and an S3 server say, as the errors of object stores."""

from __future__ import annotations

import re
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING, Any

from keynet_core._errors import (
    MissingDependency,
    ObjectMissing,
    StoreError,
    StoreForbidden,
    StoreFull,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_KEYS_HINT = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to keys that may use this bucket"
_PLACE_HINT = "look at MLFLOW_S3_ENDPOINT_URL, and set AWS_DEFAULT_REGION to the region of the bucket"
_CLOCK_HINT = "timedatectl status"
AGAIN = "try again; if it stays so, look into the log of the server"

MISSING = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchVersion"})
FORBIDDEN = frozenset(
    {
        *("AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId"),
        *("InvalidSecurity", "InvalidToken", "NotSignedUp", "RequestTimeTooSkewed", "SignatureDoesNotMatch"),
        *("TokenRefreshRequired", "UnauthorizedAccess", "UserSuspended", "Forbidden", "401", "403"),
    }
)
FULL = frozenset(
    {
        *("EntityTooLarge", "InsufficientCapacity", "InsufficientStorage", "QuotaExceeded", "ServiceQuotaExceeded"),
        *("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"),
    }
)
PASSING = frozenset(
    {
        *("BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "PreconditionFailed", "RequestTimeout"),
        *("ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException"),
        *("RequestThrottled", "XAmzContentSHA256Mismatch", "NoSuchUpload", "408", "412", "429"),
    }
)
"""What another attempt may mend: bytes damaged on their way, a server too busy, an object or upload replaced."""

ELSEWHERE = frozenset(
    {
        *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"),
        *("TemporaryRedirect", "Redirect", "301", "302", "307", "308"),
    }
)

_NO_KEYS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "UnknownCredentialError"),
    *("ProfileNotFound", "MetadataRetrievalError", "RefreshWithMFAUnsupportedError", "TokenRetrievalError"),
    *("NoAuthTokenError", "UnknownTokenProviderError", "SSOError", "LoginError"),
}
_NO_ANSWER = {
    *("ConnectionError", "HTTPClientError", "IncompleteReadError", "ChecksumError", "FlexibleChecksumError"),
    *("ResponseParserError", "HTTPError"),
}


@contextmanager
def translating_s3(bucket: str, key: str | None = None, *, endpoint_url: str | None = None) -> Iterator[None]:
    """
    Raise what boto3 says as StoreError.

    Args:
        bucket: The bucket that is asked.
        key: The object that is asked for, or None.
        endpoint_url: Where the server is, when it is not AWS.

    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError  # of a body that is read while it comes

    what = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    try:
        yield
    except ClientError as error:
        raise of_answer(error.response, what, endpoint_url) from error
    except (BotoCoreError, ResponseParserError, HTTPError) as error:
        raise of_boto(error, what, endpoint_url) from error


def answered(response: Mapping[str, Any], name: str, endpoint_url: str | None) -> Any:
    """
    Return what every S3 server answers.

    Raises:
        StoreError: It is not there: this is some other server, which has a page for every address.

    """
    if name not in response:
        where = endpoint_url or "the server"
        raise StoreError(f"{where} does not answer as S3 does: no {name}", hint="look at MLFLOW_S3_ENDPOINT_URL")
    return response[name]


def code_of(error: BaseException) -> str:
    """Return the code of the server's answer that an error was translated from, or an empty text."""
    response: Mapping[str, Any] = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def of_answer(response: Mapping[str, Any], what: str, endpoint_url: str | None) -> StoreError:
    """Return what a server's refusal means."""
    bucket, _, key = what.removeprefix("s3://").partition("/")
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    aws = f"aws --endpoint-url {endpoint_url}" if endpoint_url else "aws"
    named = code if code.isdigit() else f"{status} {code}"
    told = f"{what}: the store answered {named}: {_told(response)}"
    if key and code in MISSING:
        folder = "".join(key.rpartition("/")[:2])
        return ObjectMissing(
            f"s3://{bucket} has no object {key}", hint=f"{aws} s3 ls {quote(f's3://{bucket}/{folder}')}"
        )
    if code == "NoSuchBucket" or code in MISSING:
        return StoreError(f"there is no bucket {bucket}", hint=f"{aws} s3 mb s3://{bucket}")
    if code in FULL or status in {413, 507}:
        return StoreFull(told, hint="make room, or raise the quota of the bucket")
    if code in FORBIDDEN:
        return StoreForbidden(told, hint=_CLOCK_HINT if code == "RequestTimeTooSkewed" else _KEYS_HINT)
    if code in PASSING or (status >= 500 and status != 501):  # 501: it will never know how
        return StoreUnavailable(told, hint=AGAIN)
    return StoreError(told, hint=_PLACE_HINT if code in ELSEWHERE else f"{aws} s3 ls s3://{bucket}")


def of_boto(error: Exception, what: str, endpoint_url: str | None) -> StoreError | MissingDependency:
    """Return what boto3, or urllib3 below it, means that had no answer, or none that it could read."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    told = f"{what}: {_printable(str(error))}"
    if kinds & _NO_KEYS:
        return StoreForbidden(told, hint=_KEYS_HINT)
    if "SSLError" in kinds:
        return StoreUnavailable(told, hint="set AWS_CA_BUNDLE to the certificate of who signed the server's")
    if kinds & _NO_ANSWER:
        return StoreUnavailable(told, hint=f"curl -sI {endpoint_url or 'https://s3.amazonaws.com'}")
    if "MissingDependencyException" in kinds:
        return MissingDependency(told, hint="pip install 'botocore[crt]'")
    return StoreError(told, hint="aws configure list")


def _told(response: Mapping[str, Any]) -> str:
    return _printable(str(response.get("Error", {}).get("Message", ""))) or "no reason"


def _printable(text: str) -> str:
    # A server's words go to a terminal: none of them may move its cursor. An address may carry a password.
    text = re.sub(r"//[^/\s]*@", "//", text)
    return "".join(each if each.isprintable() else " " for each in text).strip()[:500]
