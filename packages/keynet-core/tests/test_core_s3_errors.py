"""What S3 and boto3 say, as the errors of object stores: each of boto3's exceptions, and each answer we know."""

from __future__ import annotations

import os
import re
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.auth
import botocore.exceptions
import pytest

from keynet_core import (
    MissingDependency,
    ObjectMissing,
    PackageCorrupt,
    S3Settings,
    StoreError,
    StoreForbidden,
    StoreFull,
    StoreUnavailable,
    download_package,
    open_store,
    package_key,
    upload_package,
)
from keynet_core._s3_errors import FORBIDDEN, FULL, MISSING, PASSING, of_boto, translating_s3
from keynet_core._s3_store import S3Store

# Everything that botocore 1.44 can raise, by what it means to us.
KEYS = """
    CredentialRetrievalError LoginAuthorizationCodeError LoginError LoginInsufficientPermissions LoginRefreshRequired
    LoginTokenLoadError MetadataRetrievalError NoAuthTokenError NoCredentialsError PartialCredentialsError
    ProfileNotFound RefreshWithMFAUnsupportedError SSOError SSOTokenLoadError TokenRetrievalError
    UnauthorizedSSOTokenError UnknownCredentialError UnknownTokenProviderError
"""
NO_ANSWER = """
    ChecksumError ConnectTimeoutError ConnectionClosedError ConnectionError EndpointConnectionError
    FlexibleChecksumError HTTPClientError IncompleteReadError ProxyConnectionError ReadTimeoutError
    ResponseStreamingError SSLError
"""
USE = """
    AliasConflictParameterError ApiVersionNotFoundError AwsChunkedWrapperError BaseEndpointResolverError
    CapacityNotAvailableError ConfigNotFound ConfigParseError DataNotFoundError EndpointProviderError
    EndpointResolutionError EndpointVariantError InfiniteLoopConfigError InvalidChecksumConfigError InvalidConfigError
    InvalidDNSNameError InvalidDefaultsMode InvalidEndpointConfigurationError InvalidEndpointDiscoveryConfigurationError
    InvalidExpressionError InvalidHostLabelError InvalidIMDSEndpointError InvalidIMDSEndpointModeError
    InvalidMaxRetryAttemptsError InvalidProxiesConfigError InvalidRegionError InvalidRetryConfigurationError
    InvalidRetryModeError InvalidS3AddressingStyleError InvalidS3UsEast1RegionalEndpointConfigError
    InvalidSTSRegionalEndpointsConfigError MD5UnavailableError MissingParametersError NoRegionError
    OperationNotPageableError PaginationError ParamValidationError RangeError ServiceNotInRegionError
    StubAssertionError StubResponseError UnStubbedResponseError UnknownClientMethodError UnknownEndpointError
    UnknownEndpointResolutionBuiltInName UnknownFIPSEndpointError UnknownKeyError UnknownParameterError
    UnknownRegionError UnknownServiceError UnknownServiceStyle UnknownSignatureVersionError UnseekableStreamError
    UnsupportedOutpostResourceError UnsupportedS3AccesspointConfigurationError UnsupportedS3ArnError
    UnsupportedS3ConfigurationError UnsupportedS3ControlArnError UnsupportedS3ControlConfigurationError
    UnsupportedServiceProtocolsError UnsupportedSignatureVersionError UnsupportedTLSVersionWarning ValidationError
    WaiterConfigError WaiterError
"""
MEANING = {
    **dict.fromkeys(KEYS.split(), StoreForbidden),
    **dict.fromkeys(NO_ANSWER.split(), StoreUnavailable),
    **dict.fromkeys(USE.split(), StoreError),
    "MissingDependencyException": MissingDependency,
}


def raised_by_botocore():
    base = botocore.exceptions.BotoCoreError
    return {name: kind for name, kind in vars(botocore.exceptions).items() if _is_kind(kind, base)}


def _is_kind(kind, base):
    return isinstance(kind, type) and issubclass(kind, base) and kind is not base


def test_each_of_botocores_exceptions_has_a_meaning():
    """A new one shows here, and somebody has to say what it means."""
    assert sorted(set(raised_by_botocore()) - set(MEANING)) == []


def fields_of(kind):
    return dict.fromkeys(re.findall(r"\{(\w+)", kind.fmt), "x")


@pytest.mark.parametrize("kind", raised_by_botocore().values(), ids=lambda kind: kind.__name__)
def test_what_botocore_raises_is_translated(kind):
    try:
        error = kind(**fields_of(kind))
    except TypeError:
        error = kind("name", "reason", {})  # WaiterError
    with pytest.raises((StoreError, MissingDependency)) as caught, translating_s3("bucket", "a/b"):
        raise error
    assert type(caught.value) is MEANING[kind.__name__]
    assert caught.value.message.startswith("s3://bucket/a/b: ")
    assert caught.value.__cause__ is error
    assert caught.value.hint


def test_what_is_not_botocores_goes_its_way():
    for error in (ZeroDivisionError("x"), KeyboardInterrupt(), ObjectMissing("ours")):
        with pytest.raises(type(error)) as caught, translating_s3("bucket"):
            raise error
        assert caught.value is error


def test_a_message_cannot_move_the_cursor_of_a_terminal():
    told = of_boto(Exception("\x1b[2Jgone\nline"), "s3://bucket", None)
    assert told.message == "s3://bucket: [2Jgone line"


# What servers answer, through the real boto3.


class Answering:
    """A server that answers every request alike."""

    def __init__(self):
        self.status, self.body, self.headers, self.asked = 200, b"", {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append(self.command)
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(outer.body)

            def __getattr__(self, name):
                if name.startswith("do_"):
                    return self.answer
                raise AttributeError(name)

            def log_message(self, *_told):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def refuse(self, status, code):
        self.status = status
        self.body = f"<Error><Code>{code}</Code><Message>because</Message></Error>".encode()


@pytest.fixture
def keys(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")


@pytest.fixture
def answering(keys):
    server = Answering()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def asking(answering):
    return S3Store("bucket", settings=S3Settings(endpoint_url=answering.url, timeout_s=10))


NAMED = [
    *((403, code, StoreForbidden) for code in sorted(FORBIDDEN) if not code.isdigit()),
    *((400, code, StoreFull) for code in sorted(FULL) if not code.isdigit()),
    *((400, code, StoreUnavailable) for code in sorted(PASSING - {"NoSuchUpload"}) if not code.isdigit()),
    *((404, code, ObjectMissing) for code in sorted(MISSING) if not code.isdigit()),
    (403, "QuotaExceeded", StoreFull),
    (507, "Whatever", StoreFull),
    (404, "NoSuchBucket", StoreError),
    (400, "AuthorizationHeaderMalformed", StoreError),
    (400, "EntityTooSmall", StoreError),
    (501, "NotImplemented", StoreError),
]


@pytest.mark.parametrize(("status", "code", "kind"), NAMED, ids=lambda each: getattr(each, "__name__", str(each)))
def test_an_answer_with_a_code_has_its_meaning(answering, asking, status, code, kind):
    answering.refuse(status, code)
    with pytest.raises(StoreError) as caught:
        asking.get("a", max_bytes=1)
    assert type(caught.value) is kind
    assert caught.value.hint
    assert "bucket" in caught.value.message
    if kind is not ObjectMissing and code != "NoSuchBucket":
        assert f"{status} {code}: because" in caught.value.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, StoreForbidden), (403, StoreForbidden), (413, StoreFull), (507, StoreFull), (500, StoreUnavailable)],
)
def test_an_answer_without_a_body_has_the_meaning_of_its_status(answering, asking, status, kind):
    answering.status = status
    with pytest.raises(StoreError) as caught:
        asking.stat("a")
    assert type(caught.value) is kind


def test_a_missing_object_names_the_command_that_lists_what_is_there(answering, asking):
    answering.refuse(404, "NoSuchKey")
    for key, folder in (("cats/a b/1.png", "'s3://bucket/cats/a b/'"), ("a", "s3://bucket/")):
        with pytest.raises(ObjectMissing) as caught:
            asking.get(key, max_bytes=1)
        assert caught.value.hint == f"aws --endpoint-url {answering.url} s3 ls {folder}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_not_followed_and_says_where_to(answering, asking, status):
    """As of a proxy that leads from http to https; boto3 alone asks until its stack is full."""
    answering.status, answering.headers = status, {"Location": "https://s3.example.org/bucket/a?secret=hunter2"}
    for ask in (lambda: asking.stat("a"), lambda: asking.put("a", b"x"), lambda: list(asking.list(""))):
        with pytest.raises(StoreError, match=f"answered {status}: it is at https://s3") as caught:
            ask()
        assert "MLFLOW_S3_ENDPOINT_URL" in caught.value.hint
        assert "hunter2" not in str(caught.value)
    assert len(answering.asked) == 3


def test_a_server_that_is_busy_is_asked_three_times_and_no_more(answering, asking):
    answering.refuse(503, "SlowDown")
    with pytest.raises(StoreUnavailable):
        asking.get("a", max_bytes=1)
    assert answering.asked == ["GET"] * 3


def test_a_server_that_refuses_is_asked_once(answering, asking):
    answering.refuse(403, "AccessDenied")
    with pytest.raises(StoreForbidden):
        asking.get("a", max_bytes=1)
    assert answering.asked == ["GET"]


def test_a_server_that_is_no_s3_is_not_believed(answering, asking, tmp_path):
    """As when the address is that of some other service, which has a page for every path."""
    answering.body = b"<html>Welcome</html>"
    (tmp_path / "large").write_bytes(bytes(17_000_000))
    for ask in (
        lambda: asking.put("a", b"abc"),
        lambda: asking.put_file("a", tmp_path / "large"),
        lambda: list(asking.list("")),
        lambda: asking.get_file("a", tmp_path / "t"),
    ):
        with pytest.raises(StoreError):
            ask()
    assert [each.name for each in tmp_path.iterdir()] == ["large"]


# The same, on a real server.


@pytest.fixture
def store(open_engine):
    return open_engine("ceph")


def everything(store, tmp_path):
    (tmp_path / "source").write_bytes(b"abc")
    return (
        lambda: store.put("a", b"abc"),
        lambda: store.put_file("a", tmp_path / "source"),
        lambda: store.get("a", max_bytes=9),
        lambda: store.get_file("a", tmp_path / "t"),
        lambda: store.stat("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
    )


@pytest.mark.parametrize("engine", ["ceph", "swift"])
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_forbidden_and_never_shown(open_engine, engine, variable, tmp_path, monkeypatch):
    url = open_engine(engine).url
    monkeypatch.setenv(variable, "hunter2:hunter2")
    for ask in everything(open_store(url), tmp_path):
        with pytest.raises(StoreForbidden) as caught:
            ask()
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        if variable == "AWS_SECRET_ACCESS_KEY":
            assert "hunter2" not in str(caught.value)


def test_no_keys_are_forbidden_too(store, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for ask in everything(open_store(store.url), tmp_path):
        with pytest.raises(StoreForbidden, match="Unable to locate credentials"):
            ask()


@pytest.mark.parametrize("engine", ["ceph", "swift"])
def test_a_bucket_that_is_not_there_is_named_with_what_makes_it(request, open_engine, engine, tmp_path):
    open_engine(engine)
    server = request.getfixturevalue(engine)
    for ask in everything(open_store("s3://no-such-bucket-here"), tmp_path):
        with pytest.raises(StoreError, match="there is no bucket no-such-bucket-here") as caught:
            ask()
        assert type(caught.value) is StoreError
        assert caught.value.hint == f"aws --endpoint-url {server.url} s3 mb s3://no-such-bucket-here"


def test_a_clock_that_jumped_is_named(store, monkeypatch):
    real = botocore.auth.get_current_datetime

    def jumped(remove_tzinfo=True):
        return real(remove_tzinfo) + timedelta(hours=5)

    assert abs(real(remove_tzinfo=False) - datetime.now(UTC)) < timedelta(minutes=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", jumped)
    with pytest.raises(StoreForbidden, match="RequestTimeTooSkewed") as caught:
        store.put("a", b"abc")
    assert caught.value.hint == "timedatectl status"


def test_a_key_removed_behind_the_servers_back_is_missing_and_its_package_corrupt(store, ceph, make_package, tmp_path):
    package = make_package(tmp_path / "package")
    upload_package(package, store)
    key = f"{package_key(package.manifest.name, package.digest)}/model.onnx"
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    ceph.client().delete_object(Bucket=bucket, Key=f"{prefix}/{key}")
    with pytest.raises(ObjectMissing, match="has no object"):
        store.get(key, max_bytes=100)
    with pytest.raises(PackageCorrupt, match=r"not its file model\.onnx"):
        download_package(store, package.manifest.name, package.digest, tmp_path / "fetched")
    upload_package(package, store)
    download_package(store, package.manifest.name, package.digest, tmp_path / "again").verify()
