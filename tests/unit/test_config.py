"""What is said of settings that do not fit: the value, what would fit, and what was meant."""

from __future__ import annotations

import pytest

from memory_layer import config
from memory_layer.errors import UsageError


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SERVICE_ENV", "production", "SERVICE_ENV: 'production' is not dev, prod or staging"),
        ("LOG_FORMAT", "pretty", "LOG_FORMAT: 'pretty' is not auto, json or text"),
        ("AUDIT_SIGNER", "hsm", "AUDIT_SIGNER: 'hsm' is not kms, local or vault"),
        ("PORT", "99999", "PORT: '99999' is not a whole number, 0 to 65535"),
        ("ARTIFACT_SCAN_RATE", "fast", "ARTIFACT_SCAN_RATE: 'fast' is not a whole number, 1 or more"),
        ("REQUIRE_KMS", "maybe", "REQUIRE_KMS: 'maybe' is not true or false"),
        ("BUCKET_PREFIX", "No Such", "BUCKET_PREFIX: 'No Such' does not match '^[a-z0-9]"),
        ("DATABASE_URL", "hunter2", "DATABASE_URL: it does not match "),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(variable: str, value: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.load({variable: value})
    assert said in refused.value.message
    assert "hunter2" not in refused.value.message


def test_a_misspelt_variable_is_named_with_what_was_meant() -> None:
    environ = {
        "S3_BUKET": "b",
        "MEMORY_DATE_FILE": "/x",
        "ACCESS_LOG": "strict",
        "TLS_CERTS": "/c",
        "PORT": "1",
        "HOME": "/root",
    }
    assert config.unknown_variables(environ) == [
        "ACCESS_LOG is set, but there is no such setting. See docs/reference/settings.md.",
        "MEMORY_DATE_FILE is set, but there is no such setting. Did you mean MEMORY_DATA_FILE?",
        "S3_BUKET is set, but there is no such setting. Did you mean S3_BUCKET?",
        "TLS_CERTS is set, but there is no such setting. Did you mean TLS_CERT?",
    ]
