"""As much of the policy language of IAM as the product's documents use, evaluated as AWS describes it: an explicit denial, else an
allowance, else a denial. https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html

It stands in for AWS's evaluation of aws:PrincipalArn, MFA and remaining days, which no server at hand has. What both understand it is
checked against Ceph's: tests/cli/test_provision_buckets_ceph.py asks both the same.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

Context = Mapping[str, str]


def allowed(
    principal: str, action: str, resource: str, own: Sequence[dict[str, Any]], bucket: dict[str, Any], context: Context
) -> bool:
    """``own``: the policies of the principal (an ARN); ``bucket``: that of the bucket, which in the product only denies."""
    context = {"aws:PrincipalArn": principal, **context}
    statements = [statement for policy in own for statement in policy["Statement"]]
    statements += [s for s in bucket["Statement"] if _is_meant(principal, s)]
    matching = [s for s in statements if _fits(action, resource, s) and _holds(s.get("Condition", {}), context)]
    effects = {statement["Effect"] for statement in matching}
    return "Deny" not in effects and "Allow" in effects


def _is_meant(principal: str, statement: Mapping[str, Any]) -> bool:
    if "NotPrincipal" in statement:
        return principal not in statement["NotPrincipal"]["AWS"]
    return bool(statement["Principal"] == "*" or principal in statement["Principal"]["AWS"])


def _fits(action: str, resource: str, statement: Mapping[str, Any]) -> bool:
    if not any(fnmatch.fnmatchcase(action, pattern) for pattern in statement["Action"]):
        return False
    if "NotResource" in statement:
        return not any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["NotResource"])
    return any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"])


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if not _one(operator, context.get(key), values):
                return False
    return True


def _one(operator: str, found: str | None, values: Sequence[str]) -> bool:
    if operator == "Null":
        return (found is None) == (values == ["true"])
    if operator.endswith("IfExists"):
        return found is None or _one(operator.removesuffix("IfExists"), found, values)
    if operator == "ArnNotEquals":
        return found not in values
    if found is None:
        return False
    if operator == "NumericLessThan":
        return any(float(found) < float(value) for value in values)
    if operator in ("StringEquals", "ArnEquals", "Bool"):
        return found in values
    raise AssertionError(f"no operator {operator} here")
