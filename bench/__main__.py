"""Run groups of figures, print them and keep them in ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import sys

from bench import (
    against,
    archive,
    embedding,
    files,
    ingest,
    install,
    languages,
    logs,
    milvus,
    objects,
    proofs,
    recall,
    report,
    search,
    startup,
    vectors,
    verified,
    verify,
    weights,
    writes,
)

GROUPS = {
    "startup": startup.measure,
    "recall": recall.measure,
    "languages": languages.measure,
    "search": search.measure,
    "writes": writes.measure,
    "verify": verify.measure,
    "verified": verified.measure,
    "vectors": vectors.measure,
    "proofs": proofs.measure,
    "files": files.measure,
    "archive": archive.measure,
    "logs": logs.measure,
    "against": against.measure,
}
# What needs the servers and weights of `make install-real`, or minutes: measured when it is named.
MORE = {
    "embedding": embedding.measure,
    "ingest": ingest.measure,
    "milvus": milvus.measure,
    "objects": objects.measure,
    "weights": weights.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help=f"{', '.join(GROUPS)}; default: all of these. Only by name: {', '.join(MORE)}",
    )
    parser.add_argument("--install", action="store_true", help="also install a fresh .venv (a minute)")
    parser.add_argument("--dry-run", action="store_true", help="print only; leave docs/benchmarks.md alone")
    chosen = parser.parse_args()
    all_groups = GROUPS | MORE
    if unknown := set(chosen.groups) - set(all_groups):
        parser.error(f"no such group: {', '.join(sorted(unknown))}. There are {', '.join(all_groups)}.")
    runs = {name: all_groups[name] for name in chosen.groups or ([] if chosen.install else GROUPS)}
    commands = {name: name for name in runs}
    if chosen.install:
        runs["install"], commands["install"] = install.measure, "--install"
    for name, measure in runs.items():
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            text = report.render(measure(), commands[name])
        except report.Skipped as reason:
            print(f"skipped {name}: {reason}", flush=True)
            continue
        print(f"\n{text}\n", flush=True)
        if not chosen.dry_run:
            report.write(name, text)


if __name__ == "__main__":
    main()
