"""Milvus's part of `memoryctl provision vectors`: collections with their index, loaded; users and roles for service and readers.

Who provisions is VECTOR_DB_ADMIN_KEY; the service is VECTOR_DB_API_KEY and whoever reads only (BI) is VECTOR_DB_READER_KEY, each as
``user:password``. Passwords are set when a user is made, and never read, changed or shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from memory_layer.config import Settings, reread
from memory_layer.errors import DependencyUnavailable, UsageError, VectorStoreUnavailable
from memory_layer.ops.provision.outcome import Outcome, drift, missing, note, right
from memory_layer.ops.report import Finding, Level
from memory_layer.stores.vectors.milvus_collections import check_collection, create_collection
from memory_layer.stores.vectors.milvus_records import CollectionSpec, collection_spec
from memory_layer.stores.vectors.milvus_wire import CollectionMissing, Wire, check_installed

WANTED_REPLICAS: Final = 2
INTERIM_INDEX: Final = "queryNode.segcore.interimIndex.enableIndex"
_POOL: Final = "__default_resource_group"  # where Milvus keeps its query nodes
# What the adapter calls, on its own collections alone. That a collection is there, and with which index, everyone may see.
_READ: Final = ("Search", "Query", "GetStatistics", "GetLoadState")
_WRITE: Final = (*_READ, "Insert", "Upsert", "Delete", "Load", "Flush", "GetFlushState", "GetLoadingProgress")


class Login(NamedTuple):
    """A user and what it may do. ``password`` is for making it, and for nothing else."""

    kind: str  # service or reader
    user: str
    password: str
    role: str
    privileges: tuple[str, ...]


class Standing(NamedTuple):
    """What was found: ``replicas`` by collection, 0 where it is not loaded, None where there is none; ``wrong``: not ours."""

    version: str
    nodes: int | None
    replicas: dict[str, int | None]
    wrong: dict[str, str]
    grants: dict[str, set[tuple[str, str]]] | None  # by role: (privilege, collection); None: it may not be asked
    users: dict[str, set[str]] | None  # by user: roles
    open_door: bool  # whether it asks nobody for a password


async def plan(settings: Settings) -> Outcome:
    """How Milvus stands. Raises UsageError, DependencyUnavailable, VectorStoreUnavailable."""
    wire = _wire(settings)
    try:
        return Outcome(list(_judge(settings, await _look(wire, settings))))
    finally:
        await wire.close()


async def apply(settings: Settings) -> Outcome:
    """Make collections, users, roles and rights that are missing. Nothing is dropped, taken or released. Raises as ``plan`` does."""
    wire = _wire(settings)
    made: list[str] = []
    try:
        before = await _look(wire, settings)
        for spec in _specs(settings, wire, before):
            if before.replicas[spec.name] is None:
                await create_collection(wire, spec)
                made.append(
                    f"collection {spec.name}: {spec.dimension} dimensions, {spec.index}, {spec.replicas} replicas"
                )
            elif before.replicas[spec.name] == 0 and spec.name not in before.wrong:
                await create_collection(wire, spec)  # makes what it lacks, and loads it
                made.append(f"{spec.name} loaded with {spec.replicas} replicas")
        if before.grants is not None and before.users is not None:
            for login in logins(settings):
                made += await _admit(wire, login, before, list(before.replicas))
        outcome = Outcome(list(_judge(settings, await _look(wire, settings))), made)
    finally:
        await wire.close()
    return outcome


def logins(settings: Settings) -> list[Login]:
    """The users that the settings name. Raises UsageError, which quotes no password."""
    found = []
    keys = (("service", "VECTOR_DB_API_KEY", _key(settings, "vector_db_api_key"), _WRITE),
            ("reader", "VECTOR_DB_READER_KEY", settings.vector_db_reader_key, _READ))  # fmt: skip
    for kind, setting, key, privileges in keys:
        if key is None:
            continue
        user, colon, password = key.partition(":")
        if not colon or not user or not password:
            raise UsageError(f"{setting} is not user:password, of which a user could be made.")
        if user != "root":
            found.append(Login(kind, user, password, f"kernel_memory_{settings.service_env}_{kind}", privileges))
    if len({login.user for login in found}) < len(found):
        raise UsageError(
            "VECTOR_DB_API_KEY and VECTOR_DB_READER_KEY name the same user: a reader that may write is none."
        )
    return found


def _key(settings: Settings, name: str) -> str | None:
    value: str | None = getattr(settings, name)
    return reread(name.upper()) or value


def _wire(settings: Settings) -> Wire:
    if settings.vector_db_endpoint is None:
        raise UsageError("VECTOR_DB_PROVIDER=milvus needs VECTOR_DB_ENDPOINT, such as http://host:19530.")
    check_installed()
    logins(settings)
    return Wire(
        settings.vector_db_endpoint,
        lambda: _key(settings, "vector_db_admin_key") or _key(settings, "vector_db_api_key"),
        settings.service_env,
        patience=30.0,
    )


def _specs(settings: Settings, wire: Wire, standing: Standing) -> list[CollectionSpec]:
    replicas = max(1, min(WANTED_REPLICAS, standing.nodes or 1))
    return [
        collection_spec(settings.service_env, dimension, version=wire.version, replicas=replicas)
        for dimension in (settings.embeddings_dimensions, None)
    ]


async def _look(wire: Wire, settings: Settings) -> Standing:
    version = str(await wire.call(lambda client: client.get_server_version()))
    replicas: dict[str, int | None] = {}
    wrong: dict[str, str] = {}
    for dimension in (settings.embeddings_dimensions, None):
        spec = collection_spec(settings.service_env, dimension, version=wire.version)
        try:
            indexed = await check_collection(wire, spec)
            replicas[spec.name] = await _replicas(wire, spec.name) if indexed else 0
        except CollectionMissing:
            replicas[spec.name] = None
        except DependencyUnavailable as error:
            replicas[spec.name], wrong[spec.name] = 0, error.message
    try:
        pool = await wire.call(lambda client: client.describe_resource_group(_POOL))
        nodes: int | None = int(pool.num_available_node)
    except VectorStoreUnavailable:
        nodes = None
    grants: dict[str, set[tuple[str, str]]] | None = {}
    users: dict[str, set[str]] | None = {}
    try:
        known = set(await wire.call(lambda client: client.list_roles()))
        grants = {login.role: await _granted(wire, login.role) for login in logins(settings) if login.role in known}
        there = set(await wire.call(lambda client: client.list_users()))
        users = {login.user: await _roles(wire, login.user) for login in logins(settings) if login.user in there}
    except VectorStoreUnavailable:
        grants = users = None
    return Standing(version, nodes, replicas, wrong, grants, users, await _asks_nobody(settings))


async def _replicas(wire: Wire, collection: str) -> int:
    state = await wire.call(lambda client: client.get_load_state(collection))
    if getattr(state.get("state"), "name", "") != "Loaded":
        return 0
    return len(await wire.call(lambda client: client.describe_replica(collection)))


async def _granted(wire: Wire, role: str) -> set[tuple[str, str]]:
    told = await wire.call(lambda client: client.describe_role(role))
    return {(grant["privilege"], grant["object_name"]) for grant in told.get("privileges", ())}


async def _roles(wire: Wire, user: str) -> set[str]:
    told = await wire.call(lambda client: client.describe_user(user))
    return set((told or {}).get("roles", ()))


async def _asks_nobody(settings: Settings) -> bool:
    """Whether somebody with a made-up password gets in."""
    stranger = Wire(
        settings.vector_db_endpoint or "", lambda: "nobody:made-up-word", settings.service_env, patience=10.0
    )
    try:
        await stranger.call(lambda client: client.list_collections(retry_times=1))
    except (VectorStoreUnavailable, DependencyUnavailable):
        return False
    finally:
        await stranger.close()
    return True


async def _admit(wire: Wire, login: Login, before: Standing, collections: list[str]) -> list[str]:
    """Make what a login lacks: user, role, rights, and the role to the user."""
    made: list[str] = []
    grants, users = before.grants or {}, before.users or {}
    if login.role not in grants:
        await wire.call(lambda client: client.create_role(login.role))
        made.append(f"role {login.role}")
    for privilege, collection in _lacking(login, grants.get(login.role, set()), collections):
        await wire.call(
            lambda client, p=privilege, c=collection: client.grant_privilege(login.role, "Collection", p, c)  # type: ignore[misc]
        )
        made.append(f"{privilege} on {collection} to {login.role}")
    if login.user not in users:
        await wire.call(lambda client: client.create_user(login.user, login.password))
        made.append(f"user {login.user}")
    if login.role not in users.get(login.user, set()):
        await wire.call(lambda client: client.grant_role(login.user, login.role))
        made.append(f"role {login.role} to {login.user}")
    return made


def _lacking(login: Login, held: set[tuple[str, str]], collections: list[str]) -> list[tuple[str, str]]:
    return [(p, c) for c in collections for p in login.privileges if (p, c) not in held]


# --- what it means


def _judge(settings: Settings, found: Standing) -> Iterator[Finding]:
    yield right("vectors.milvus.version", f"Milvus is {found.version}.")
    for name, replicas in found.replicas.items():
        yield _collection(name, replicas, found)
    yield _copies(settings, found)
    level: Level = "info" if settings.service_env == "dev" else "error"
    if found.open_door:
        yield drift(
            "vectors.milvus.authorization",
            "Milvus asks nobody for a password.",
            "Set common.security.authorizationEnabled: true, and change root's password.",
            level,
        )
    else:
        yield right("vectors.milvus.authorization", "Milvus asks for a password.")
    yield note(
        "vectors.milvus.interim-index",
        f"Whether {INTERIM_INDEX} is off cannot be asked. Milvus has it on, and then loses matches among vectors that it has not "
        "sealed yet.",
        f"Set {INTERIM_INDEX}: false in milvus.yaml and restart the query nodes (docs/operations.md, Milvus).",
    )
    yield from _access(settings, found)


def _collection(name: str, replicas: int | None, found: Standing) -> Finding:
    check = "vectors.milvus.marks" if name.endswith("_removed") else "vectors.milvus.collection"
    if replicas is None:
        return missing(check, f"There is no collection {name}.")
    if name in found.wrong:
        return drift(check, found.wrong[name], "Nothing is dropped here: that is for you to decide.")
    if replicas == 0:
        return missing(check, f"{name} lacks its index or is not loaded.", "apply makes its index and loads it.")
    return right(check, f"{name} is there, with its index, loaded.")


def _copies(settings: Settings, found: Standing) -> Finding:
    check = "vectors.milvus.replicas"
    few = {name: count for name, count in found.replicas.items() if count is not None and count < WANTED_REPLICAS}
    evidence = {"queryNodes": found.nodes, "replicas": dict(found.replicas)}
    if not few and all(count is not None for count in found.replicas.values()):
        return right(check, f"All collections have {WANTED_REPLICAS} replicas or more.", "warning", **evidence)
    if found.nodes is not None and found.nodes < WANTED_REPLICAS:
        level: Level = "info" if settings.service_env == "dev" else "warning"
        return drift(
            check,
            f"Milvus has {found.nodes} query node, and {WANTED_REPLICAS} replicas need as many.",
            "Add a query node; then release and load the collections with that many replicas.",
            level,
            **evidence,
        )
    return drift(
        check,
        f"Not {WANTED_REPLICAS} replicas: {', '.join(f'{name} has {count}' for name, count in few.items()) or 'no collection yet'}.",
        "Release and load a collection that has too few with replica_number=2, when searches may fail for a moment.",
        "warning",
        **evidence,
    )


def _access(settings: Settings, found: Standing) -> Iterator[Finding]:
    named = logins(settings)
    for kind, setting in (("service", "VECTOR_DB_API_KEY"), ("reader", "VECTOR_DB_READER_KEY")):
        check = f"vectors.milvus.{kind}"
        login = next((one for one in named if one.kind == kind), None)
        if login is None:
            yield note(
                check,
                f"{setting} names no user of its own, so none was looked for.",
                f"Set {setting} to user:password.",
            )
        elif found.grants is None or found.users is None:
            yield note(
                check,
                "Users and roles may not be asked for with this key.",
                "Set VECTOR_DB_ADMIN_KEY to an administrator's user:password.",
            )
        else:
            yield _login(check, login, found.grants, found.users, list(found.replicas))


def _login(
    check: str,
    login: Login,
    grants: dict[str, set[tuple[str, str]]],
    users: dict[str, set[str]],
    collections: list[str],
) -> Finding:
    lacking = _lacking(login, grants.get(login.role, set()), collections)
    lacks = [f"role {login.role}"] if login.role not in grants else [f"{p} on {c}" for p, c in lacking]
    if login.user not in users:
        lacks.append(f"user {login.user}")
    elif login.role not in users[login.user]:
        lacks.append(f"role {login.role} at {login.user}")
    if lacks:
        return missing(check, f"There is no {', '.join(lacks)}.")
    wanted = {(p, c) for c in collections for p in login.privileges}
    more = sorted(f"{p} on {c}" for p, c in grants[login.role] - wanted)
    others = sorted(users[login.user] - {login.role, "public"})
    if more or others:
        return drift(
            check,
            f"{login.user} may do more than it needs: {', '.join([*more, *(f'role {name}' for name in others)])}.",
            "Revoke it, or it is more than a leak of this key should open.",
        )
    return right(check, f"{login.user} may do what it needs on {', '.join(collections)}, and nothing else.")
