"""The options that commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Data = Annotated[Path | None, Parameter(help="Data folder: keys, files, and the database of `memoryctl up`.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Yes = Annotated[bool, Parameter(help="Do not ask.")]
Limit = Annotated[int, Parameter(help="How many at the most.")]

# Which part of the installation.
Tenant = Annotated[str | None, Parameter(help="Only this tenant; else all tenants.")]
OneTenant = Annotated[str, Parameter(help="Whose namespace.")]
Namespace = Annotated[str | None, Parameter(help="Only this index namespace.")]
OneNamespace = Annotated[str | None, Parameter(help="The namespace; default VECTOR_DB_NAMESPACE.")]

# How the index is worked on.
Timeout = Annotated[float, Parameter(help="Seconds to wait until rows are indexed.")]
Here = Annotated[bool, Parameter(help="Index in this process: for when no worker runs.")]
Compared = Annotated[
    Literal["none", "sample", "all"],
    Parameter(name="--vectors", help="Which vectors are compared too: 1000 of each namespace, all, or none."),
]

# What the log is judged by.
TrustRootFile = Annotated[
    Path | None, Parameter(help="Your own copy of trust-root.json; else that of the data folder.")
]
FromStore = Annotated[
    bool, Parameter(name=["--from-s3", "--from-store"], help="The archive that ARCHIVE_BUCKET and S3_* name.")
]
