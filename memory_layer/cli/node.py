"""`memoryctl node`: single nodes from a shell."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from memory_layer.cli import connection, render
from memory_layer.cli.options import AsJson
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.client import MemoryClient

# Of the entries of nodes: those whose payload says why.
WITH_REASON: Final = ("memory.legal_hold.set", "memory.legal_hold.released", "memory.node.deleted")

node = App(name="node", help="Read and write single nodes; legal holds.")

Metadata = Annotated[str | None, Parameter(help="JSON object.")]
IfMatch = Annotated[int | None, Parameter(help="Only if the node still has this version.")]


def _given(content: str | None) -> str | None:
    """The text of an option; - is standard input, without the mark that some editors put before it."""
    return sys.stdin.read().removeprefix("\ufeff") if content == "-" else content


@node.command
def create(
    content: Annotated[str | None, Parameter(help="Text; - reads standard input.", allow_leading_hyphen=True)] = None,
    /,
    *,
    owner: Annotated[str | None, Parameter(help="Default: your user name.")] = None,
    namespace: str | None = None,
    metadata: Metadata = None,
    embedding: Annotated[Path | None, Parameter(help='JSON file with {"model", "vector"}.')] = None,
    embedding_id: Annotated[str | None, Parameter(help="Your own id, unique among live nodes.")] = None,
    subject: Annotated[list[str] | None, Parameter(help="Whom it is about; repeat for more.")] = None,
    occurred_at: Annotated[str | None, Parameter(help="RFC 3339 time.")] = None,
    thread: Annotated[str | None, Parameter(help="What it is a part of: a conversation, a document.")] = None,
    position: Annotated[int | None, Parameter(help="Its place in the thread.")] = None,
    ttl: Annotated[int | None, Parameter(help="Seconds to live, 3600 or more.")] = None,
    pii_flags: Annotated[str | None, Parameter(help='JSON, as {"containsPii": true, "paths": ["content"]}.')] = None,
    legal_hold: Annotated[bool, Parameter(negative="", help="Hold it from the start.")] = False,
    wait: Annotated[bool, Parameter(negative="", help="Until it can be found by meaning.")] = False,
    as_json: AsJson = False,
) -> int:
    """Create a node; prints its id, and on stderr its entry in the audit log.

    With --wait the exit code is 1 when it could not be found by meaning in time.

    For example:

      memoryctl node create "Caroline adopted a puppy called Oliver." --wait
      memoryctl node create - --metadata '{"kind": "minutes"}' < minutes.txt
    """
    import json

    with connection.client() as memory:
        made = memory.remember(
            _given(content),
            owner=owner or connection.default_owner(),
            namespace=namespace,
            metadata=connection.json_object(metadata, "--metadata"),
            embedding=None if embedding is None else json.loads(embedding.read_text("utf-8")),
            embedding_id=embedding_id,
            ttl_seconds=ttl,
            pii_flags=connection.json_object(pii_flags, "--pii-flags"),
            legal_hold=legal_hold or None,
            subjects=subject,
            occurred_at=occurred_at,
            thread=thread,
            position=position,
            wait_indexed=wait,
        )
    if as_json:
        render.data(made)
    else:
        render.line(str(made["memoryNodeId"]))
        render.say(f"stored{_entry(made)}")
    if wait and not made.get("indexed", True):
        return render.failure(
            "the node is stored, and could not be found by meaning within 10 s. Is a worker running? `memoryctl up` brings one, "
            "`memoryctl worker` is one; `memoryctl vectors status` shows what waits and why.",
            1,
        )
    return 0


@node.command
def get(node_id: str, /, *, as_json: AsJson = False) -> None:
    """Show a node with its artifacts, vector status and latest audit entry.

    For example:

      memoryctl node get 019a7f3e-...
      memoryctl node get 019a7f3e-... --json | jq .vector
    """
    with connection.client() as memory:
        found = memory.get(node_id)
    if as_json:
        render.data(found)
        return
    flat: list[tuple[str, object]] = []
    for name, value in found.items():
        if name in ("vector", "audit") and isinstance(value, dict):
            flat += [(f"{name}.{inner}", part) for inner, part in value.items()]
        else:
            flat.append((name, value))
    render.pairs(flat)


@node.command
def update(
    node_id: str,
    /,
    *,
    content: Annotated[
        str | None, Parameter(help="New text; - reads standard input.", allow_leading_hyphen=True)
    ] = None,
    metadata: Annotated[str | None, Parameter(help="JSON object to merge; null removes a field.")] = None,
    ttl: Annotated[int | None, Parameter(help="Seconds to live, 3600 or more; 0 removes the limit.")] = None,
    pii_flags: Annotated[str | None, Parameter(help="JSON object that replaces the flags.")] = None,
    owner: Annotated[str | None, Parameter(help="Another owner; subjects that nobody named follow.")] = None,
    subject: Annotated[
        list[str] | None, Parameter(help="Whom erasure finds; may be repeated, replaces them all.")
    ] = None,
    occurred_at: Annotated[str | None, Parameter(help="When it happened, RFC 3339; '' removes it.")] = None,
    thread: Annotated[str | None, Parameter(help="What it is a part of; an empty text takes it out.")] = None,
    position: Annotated[int | None, Parameter(help="Its place in the thread.")] = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Change a node: metadata is merged, the rest replaced.

    For example:

      memoryctl node update 019a7f3e-... --metadata '{"reviewed": true}' --if-match 3
      memoryctl node update 019a7f3e-... --owner bob --subject bob --subject caroline
    """
    changes: dict[str, Any] = {}
    if content is not None:
        changes["content"] = _given(content)
    if metadata is not None:
        changes["metadata"] = connection.json_object(metadata, "--metadata")
    if ttl is not None:
        changes["ttl_seconds"] = ttl or None
    if pii_flags is not None:
        changes["pii_flags"] = connection.json_object(pii_flags, "--pii-flags")
    if occurred_at is not None:
        changes["occurred_at"] = occurred_at or None
    if thread is not None:
        changes["thread"] = thread or None
    named = (("owner", owner), ("subjects", subject), ("position", position))
    changes |= {name: given for name, given in named if given is not None}
    if not changes:
        raise UsageError(
            "nothing to update: give --content, --metadata, --ttl, --pii-flags, --owner, --subject, --occurred-at, --thread or --position."
        )
    with connection.client() as memory:
        changed = memory.update(node_id, **changes, if_match=if_match)
    if as_json:
        render.data(changed)
    else:
        render.line(f"{node_id} is now version {changed.get('version', '?')}")
        render.say(f"changed{_entry(changed)}")


@node.command
def delete(
    node_id: str,
    /,
    *,
    if_match: IfMatch = None,
    yes: Annotated[bool, Parameter(alias="-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Delete a node. Refused (exit 4) under legal hold. Asks first on a terminal.

    For example:

      memoryctl node delete 019a7f3e-... --yes
    """
    if not render.confirm(f"Delete node {node_id}?", yes=yes):
        render.say("nothing was deleted.")
        return 1
    with connection.client() as memory:
        done = memory.delete(node_id, if_match=if_match)
    return _done(node_id, "deleted", done, as_json)


@node.command
def history(node_id: str, /, *, as_json: AsJson = False) -> None:
    """Show the audit entries of a node, oldest first: what was done, when, by whom and why.

    ACTOR is the id of a principal; REASON is that of a hold, its release, or an expiry. AUDIT ID is what `audit proof` takes.

    For example:

      memoryctl node history 019a7f3e-...
    """
    with connection.client() as memory:
        entries = memory.history(node_id)
        if as_json:
            render.data({"items": entries})
            return
        rows = [(e["seq"], e["type"], e["createdAt"], e["actor"], _reason(memory, e), e["auditId"]) for e in entries]
    render.table(("seq", "type", "when", "actor", "reason", "audit id"), rows, wide="reason")


def _reason(memory: MemoryClient, entry: Mapping[str, Any]) -> str:
    """Why, where the action has a reason. It is in the entry's payload, which takes the scope audit:read."""
    from memory_layer.client.errors import MemoryLayerClientError

    if entry["type"] not in WITH_REASON:
        return ""
    try:
        payload = memory.event(entry["auditId"])["payload"]
    except MemoryLayerClientError as error:
        if error.code == "FORBIDDEN":
            return "(shown to tokens with audit:read)"
        raise
    return str((payload.get("value") or {}).get("reason") or "")


@node.command(name="list")
def list_nodes(
    *,
    where: Annotated[str | None, Parameter(name="--filter", help="Filter as JSON.")] = None,
    limit: Annotated[int, Parameter(help="How many at most; 0 for all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List nodes.

    For example:

      memoryctl node list --filter '{"owner": "caroline"}'
      memoryctl node list --limit 0 --json | jq -r '.items[].memoryNodeId'
    """
    condition = connection.json_object(where, "--filter")
    if limit < 0:
        raise UsageError("--limit is 0 (all) or more.")
    with connection.client() as memory:
        nodes = memory.list(condition, page_size=min(limit, 100) or 100)
        found = list(itertools.islice(nodes, limit or None))
    if as_json:
        render.data({"items": found})
        return
    rows = [
        (
            item.get("memoryNodeId"),
            item.get("owner"),
            (item.get("vector") or {}).get("status"),
            render.snippet(str(item.get("content") or "")),
            render.source(item.get("metadata")),
        )
        for item in found
    ]
    render.table(("id", "owner", "index", "text", "source"), rows, wide="text")
    if limit and len(found) == limit:
        render.say(f"the first {limit}; --limit 0 lists all.")


@node.command
def hold(
    node_id: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; goes into the audit log.")],
    case_id: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Put a node under legal hold: it cannot be deleted until released.

    For example:

      memoryctl node hold 019a7f3e-... --reason "litigation" --case-id 2026-17
    """
    with connection.client() as memory:
        done = memory.hold(node_id, reason, case_id=case_id)
    return _done(node_id, "held", done, as_json)


@node.command
def release(
    node_id: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; goes into the audit log.")],
    case_id: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Lift the legal hold of a node.

    For example:

      memoryctl node release 019a7f3e-... --reason "case closed"
    """
    with connection.client() as memory:
        done = memory.release(node_id, reason, case_id=case_id)
    return _done(node_id, "released", done, as_json)


def _done(node_id: str, what: str, answer: dict[str, Any], as_json: bool) -> int:
    if as_json:
        render.data({"memoryNodeId": node_id, **answer})
    else:
        render.say(f"{node_id} {what}{_entry(answer)}")
    return 0


def _entry(answer: Mapping[str, Any]) -> str:
    """Where a write stands in the audit log, and how to prove that."""
    if "auditSeq" in answer:
        return f": entry {answer['auditSeq']} of the audit log."
    if not answer.get("auditId"):
        return "."
    return f": entry {answer['audit']['seq']} of the audit log. To prove it: memoryctl audit proof {answer['auditId']}"
