"""
The branch of the error tree that belongs to the server.

KeynetError
├── JournalUnavailable
├── ClaimMissing
├── EventUnknown
├── EventConflict
├── PackageElsewhere
├── BrokerUnavailable
│   └── BrokerRefused
├── BrokerMissing
├── DeploymentUnknown
├── DeploymentConflict
├── DeploymentFailed
│   ├── EngineRefused
│   └── ProbeRefused
├── DeploymentPostponed
├── EngineUnavailable
├── RepositoryFailed
├── RequestRefused
│   ├── TokenRefused
│   ├── BodyTooLarge
│   ├── ContentTypeRefused
│   ├── HostRefused
│   └── BodyInvalid
├── ServerUnreachable        (also ConnectionError)
├── ServerRefused
├── AlreadyUp
├── PortTaken
└── ChildFailed
"""

from __future__ import annotations

from typing import ClassVar

from keynet_core import KeynetError


class JournalUnavailable(KeynetError):
    """Raised when the database that holds the journal cannot be used."""

    code = "journal.unavailable"


class ClaimMissing(KeynetError):
    """Raised when this server may not act on a model, because another one does, or may by now; nothing is lost."""

    code = "claim.missing"


class EventUnknown(KeynetError):
    """Raised when an event is asked for that was never received."""

    code = "event.unknown"


class EventConflict(KeynetError):
    """Raised when an event is to be acted on again that did not fail."""

    code = "event.conflict"


class PackageElsewhere(KeynetError):
    """Raised when an event announces a package that is not in the server's own store."""

    code = "package.elsewhere"


class BrokerUnavailable(KeynetError):
    """Raised when RabbitMQ does not answer, or the connection to it is lost; it is tried again."""

    code = "broker.unavailable"


class BrokerRefused(BrokerUnavailable):
    """Raised when RabbitMQ refuses user, virtual host or a declaration: a setting, here or there, has to change."""

    code = "broker.refused"


class BrokerMissing(KeynetError):
    """Raised when the server is asked about dead letters, and takes events over HTTP alone."""

    code = "broker.missing"


class DeploymentUnknown(KeynetError):
    """Raised when a model, or one of its deployments, is asked for that the journal does not know."""

    code = "deployment.unknown"


class DeploymentConflict(KeynetError):
    """Raised when a deployment is asked for that makes no sense now: it is live already, or there is no older one."""

    code = "deployment.conflict"


class DeploymentFailed(KeynetError):
    """Raised when a package cannot be served; what was served before still is."""

    code = "deployment.failed"


class EngineRefused(DeploymentFailed):
    """Raised when the model server answered that it will not; the message carries its own words."""

    code = "engine.refused"


class ProbeRefused(DeploymentFailed):
    """Raised when a loaded model answers its recorded request otherwise than was recorded."""

    code = "deployment.probe_refused"


class DeploymentPostponed(KeynetError):
    """
    Raised when a package cannot be served now, and may be later without having changed.

    Args:
        message: What is waited for.
        hint: The next thing to do.
        after_link: Whether the model server had been shown the package: then the package may be what stopped it.

    """

    code = "deployment.postponed"

    def __init__(self, message: str, *, hint: str | None = None, after_link: bool) -> None:
        super().__init__(message, hint=hint)
        self.after_link = after_link


class EngineUnavailable(KeynetError):
    """Raised when the model server does not answer, or not in time; trying again later is safe."""

    code = "engine.unavailable"


class RepositoryFailed(KeynetError):
    """
    Raised when the directory that the model server reads cannot be written.

    Args:
        message: What could not be written, and why.
        hint: The next thing to do.
        may_pass: Whether time or an operator can mend it; otherwise it is the package that cannot be written.

    """

    code = "repository.failed"

    def __init__(self, message: str, *, hint: str | None = None, may_pass: bool) -> None:
        super().__init__(message, hint=hint)
        self.may_pass = may_pass


class RequestRefused(KeynetError):
    """Raised when an HTTP request is refused before it is understood; `status` is the answer's."""

    code = "request.refused"
    status: ClassVar[int] = 400


class TokenRefused(RequestRefused):
    """Raised when a request that changes something carries no token, or a wrong one."""

    code = "request.token_refused"
    status = 401


class BodyTooLarge(RequestRefused):
    """Raised when a request's body has more bytes than its route takes."""

    code = "request.too_large"
    status = 413


class ContentTypeRefused(RequestRefused):
    """Raised when a request's body is not of the type its route takes."""

    code = "request.content_type"
    status = 415


class HostRefused(RequestRefused):
    """Raised when a request names a host this server does not answer for."""

    code = "request.host_refused"
    status = 421


class BodyInvalid(RequestRefused):
    """Raised when a request's body cannot be read."""

    code = "request.invalid"
    status = 422


class ServerUnreachable(KeynetError, ConnectionError):
    """Raised when the keynet server does not answer a command."""

    code = "server.unreachable"


class ServerRefused(KeynetError):
    """
    Raised when the keynet server answers a command with a problem.

    Args:
        message: The server's own sentence.
        hint: The next thing to do.
        status: The answer's HTTP status.
        problem_code: The code the server gave the problem.

    """

    code = "server.refused"

    def __init__(self, message: str, *, hint: str | None = None, status: int, problem_code: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.problem_code = problem_code

    def to_dict(self) -> dict[str, str]:
        """Return what a machine reads, with the server's code."""
        return super().to_dict() | ({"code": self.problem_code} if self.problem_code else {})


class AlreadyUp(KeynetError):
    """Raised when `keynet up`, or a server, runs on the same home already."""

    code = "up.already_running"


class PortTaken(KeynetError):
    """Raised when a port that was asked for is in use."""

    code = "up.port_taken"


class ChildFailed(KeynetError):
    """Raised when an engine that `keynet up` started ended, or was not ready in time."""

    code = "up.child_failed"
