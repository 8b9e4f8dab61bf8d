"""Clients of AWS's services, and what a failed call means, in words that repeat nothing of what was sent.

Codes that every service has: https://docs.aws.amazon.com/awssupport/latest/APIReference/CommonErrors.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from memory_layer.errors import UsageError
from memory_layer.installing import install
from memory_layer.stores.remote.faults import Fault, translated

T = TypeVar("T")

_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,63}")
_SKEW: Final = re.compile(r"signature (expired|not yet current)", re.IGNORECASE)
_SKEWED: Final = Fault("the clocks of this machine and of AWS differ (TIME_SKEW). Check NTP", True)
_UNKNOWN_KEY: Final = Fault("AWS does not know the access key of the credentials", False)
_EXPIRED: Final = Fault("the AWS credentials have expired. Renew them", True)
SILENT: Final = Fault("it did not answer in time", True)
_COMMON: Final = {
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "MissingAuthenticationTokenException": Fault("the request came without AWS credentials", False),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _SKEWED,
    "ThrottlingException": Fault("AWS throttles the calls", True),
}


@dataclass(frozen=True, slots=True)
class Service:
    """One of AWS's services, as errors name it. ``client``: boto3's name of it, and the extra that brings boto3. ``needs``: what wants
    it. The settings to look at: ``region`` where the region is not known, ``place`` where the client cannot be made, ``certificate`` where
    TLS fails, ``reach`` where nobody answers, ``malformed`` where a parameter is refused before it is sent, ``credentials`` where there
    are none. ``faults``: its own codes, which go before the common ones."""

    client: str
    name: str
    needs: str
    region: str
    place: str
    certificate: str
    reach: str
    malformed: str
    credentials: str = "there are no AWS credentials. Give this process a role, a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    faults: Mapping[str, Fault] = field(default_factory=dict)


def open_client(
    service: Service,
    *,
    endpoint: str | None,
    region: str | None,
    fallback: str | None = None,
    key: str | None = None,
    secret: str | None = None,
    **config: Any,
) -> Any:
    """A boto3 client. Reads files, asks nothing of the network. ``region``: where neither it nor AWS's own settings name one, ``fallback``.
    ``key`` and ``secret``: without them AWS's own chain of credentials. ``config``: of botocore's Config. Raises UsageError."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UsageError(
            f"{service.needs} needs boto3, which is not installed. Run: " + install("server", service.client)
        ) from None

    def make() -> Any:
        session = boto3.session.Session()
        found = region or session.region_name or fallback
        if found is None:
            raise UsageError(service.region)
        return session.client(
            service.client,
            region_name=found,
            endpoint_url=endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(tcp_keepalive=True, user_agent_appid="memory-layer", **config),
        )

    def refused(error: Exception) -> UsageError:
        known = isinstance(error, BotoCoreError)
        return UsageError(f"{service.name} cannot be used: {explain(service, error).text if known else service.place}.")

    return translated(make, (BotoCoreError, ValueError), refused)


def errors() -> tuple[type[Exception], ...]:
    """What a call of a boto3 client may raise."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    return BotoCoreError, ClientError, HTTPClientError


def called(service: Service, function: Callable[[], T], refused: Callable[[Fault], Exception]) -> T:
    """What ``function``, a call of a client, returns. Raises what ``refused`` makes of a failure, and nothing of the library's."""
    return translated(function, errors(), lambda error: refused(explain(service, error)))


def explain(service: Service, error: Exception) -> Fault:
    """What a failed call means."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _refused(answer_of(error), service.faults)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return Fault(service.credentials, False)
    if isinstance(error, (boto.CredentialRetrievalError, boto.MetadataRetrievalError)):
        return Fault("AWS credentials could not be fetched. Check the role of this machine", True)
    if isinstance(error, boto.ProfileNotFound):
        return Fault("AWS_PROFILE names no profile", False)
    if isinstance(error, boto.ParamValidationError):
        return Fault(service.malformed, False)
    if isinstance(error, boto.SSLError):
        return Fault(f"its TLS certificate is not valid for {service.certificate}", False)
    if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError)):
        return SILENT
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError)):
        return Fault(f"it cannot be reached ({type(error).__name__}). Check {service.reach}", True)
    return Fault(f"the call failed ({type(error).__name__})", True)


class Answer(NamedTuple):
    """An error that the service answered with; empty, with the status 0, where it did not answer."""

    code: str = ""
    status: int = 0
    message: str = ""


def answer_of(error: Exception) -> Answer:
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return Answer()
    details, status = (
        error.response.get("Error", {}),
        error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
    )
    return Answer(str(details.get("Code", "")), int(status), str(details.get("Message") or ""))


def _refused(answer: Answer, faults: Mapping[str, Fault]) -> Fault:
    # AWS.SimpleQueueService.NonExistentQueue in an older protocol, com.amazonaws.sqs#QueueDoesNotExist in a newer one.
    code, status = re.split(r"[.#]", answer.code)[-1], answer.status
    found = faults.get(answer.code) or faults.get(code) or _COMMON.get(code)
    if found is not None:
        return found
    if code in ("InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignatureException"):
        if _SKEW.search(answer.message):
            return _SKEWED
        return Fault("AWS does not accept the credentials' signature. Check AWS_SECRET_ACCESS_KEY and the clock", False)
    shown = code if _CODE.fullmatch(code) else ""
    return Fault(f"it answered {status} {shown}".rstrip(), status >= 500 or status == 429 or not shown)
