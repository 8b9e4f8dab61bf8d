"""What a failed call of an AWS service means, in words that repeat nothing of what was sent. KMS and SQS share it.

Codes that every service has: https://docs.aws.amazon.com/awssupport/latest/APIReference/CommonErrors.html. S3's are told elsewhere
(``objects/s3_wire.py``): there most of them say something about an object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from memory_layer.stores.signers.remote import Fault

_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,63}")
_SKEW: Final = re.compile(r"signature (expired|not yet current)", re.IGNORECASE)
_SKEWED: Final = Fault("the clocks of this machine and of AWS differ (TIME_SKEW). Check NTP", True)
_UNKNOWN_KEY: Final = Fault("AWS does not know the access key of the credentials", False)
_EXPIRED: Final = Fault("the AWS credentials have expired. Renew them", True)
_COMMON: Final = {
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "MissingAuthenticationTokenException": Fault("the request came without AWS credentials", False),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _SKEWED,
    "ThrottlingException": Fault("AWS throttles the calls", True),
}


def explain(error: Exception, faults: Mapping[str, Fault], *, certificate: str, reach: str, malformed: str) -> Fault:
    """``faults``: the service's own codes, which go before the common ones. The settings to look at: ``certificate`` where TLS fails,
    ``reach`` where nobody answers, ``malformed`` where a parameter is refused before it is sent."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _refused(error.response, faults)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return Fault(
            "there are no AWS credentials. Give this process a role, a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            False,
        )
    if isinstance(error, (boto.CredentialRetrievalError, boto.MetadataRetrievalError)):
        return Fault("AWS credentials could not be fetched. Check the role of this machine", True)
    if isinstance(error, boto.ProfileNotFound):
        return Fault("AWS_PROFILE names no profile", False)
    if isinstance(error, boto.ParamValidationError):
        return Fault(malformed, False)
    if isinstance(error, boto.SSLError):
        return Fault(f"its TLS certificate is not valid for {certificate}", False)
    if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError)):
        return Fault("it did not answer in time", True)
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError)):
        return Fault(f"it cannot be reached ({type(error).__name__}). Check {reach}", True)
    return Fault(f"the call failed ({type(error).__name__})", True)


def _refused(response: Any, faults: Mapping[str, Fault]) -> Fault:
    # AWS.SimpleQueueService.NonExistentQueue in an older protocol, com.amazonaws.sqs#QueueDoesNotExist in a newer one.
    code = re.split(r"[.#]", str(response.get("Error", {}).get("Code", "")))[-1]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    found = faults.get(code) or _COMMON.get(code)
    if found is not None:
        return found
    if code in ("InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignatureException"):
        if _SKEW.search(str(response["Error"].get("Message", ""))):
            return _SKEWED
        return Fault("AWS does not accept the credentials' signature. Check AWS_SECRET_ACCESS_KEY and the clock", False)
    shown = code if _CODE.fullmatch(code) else ""
    return Fault(f"it answered {status} {shown}".rstrip(), status >= 500 or status == 429 or not shown)
