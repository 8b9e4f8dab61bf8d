"""Milvus's part of `memoryctl provision vectors`: collections with their index, loaded; users and roles for service and readers.

Who provisions is VECTOR_DB_ADMIN_KEY; the service is VECTOR_DB_API_KEY and whoever reads only (BI) is VECTOR_DB_READER_KEY, each as
``user:password``. Passwords are set when a user is made, and never read, changed or shown.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memory_layer.config import Settings, reread
from memory_layer.errors import DependencyUnavailable, UsageError, VectorStoreUnavailable
from memory_layer.ops.checks import Check, Made, Survey, known
from memory_layer.ops.provision.guide import INDEX, REPLICAS, RIGHTS
from memory_layer.ops.report import Level
from memory_layer.stores.vectors.milvus_collections import check_collection, create_collection
from memory_layer.stores.vectors.milvus_records import CollectionSpec, collection_spec
from memory_layer.stores.vectors.milvus_wire import CollectionMissing, Wire, check_installed

MAKES: Final = "memoryctl provision apply vectors makes it."
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
    """A collection. ``replicas``: 0 where it is not loaded, None where there is none; ``wrong``: why it is not ours."""

    replicas: int | None
    wrong: str = ""


class Access(NamedTuple):
    """What the server knows of the logins. ``grants``: by role, (privilege, collection); ``users``: by user, roles."""

    grants: dict[str, set[tuple[str, str]]]
    users: dict[str, set[str]]


async def examine(survey: Survey, settings: Settings) -> None:
    """Collections, users, roles and rights. Nothing is dropped, taken or released.

    Raises UsageError, DependencyUnavailable, VectorStoreUnavailable.
    """
    wire = _wire(settings)
    try:
        await _examine(survey, settings, wire)
    finally:
        await wire.close()


async def _examine(survey: Survey, settings: Settings, wire: Wire) -> None:
    version = await wire.call(lambda client: client.get_server_version())
    await survey.check(known("vectors.milvus.version", True, f"Milvus is {version}."))
    nodes = await _nodes(wire)
    standing: dict[str, Standing] = {}
    for dimension in (settings.embeddings_dimensions, None):
        replicas = max(1, min(WANTED_REPLICAS, nodes or 1))
        spec = collection_spec(settings.service_env, dimension, version=wire.version, replicas=replicas)
        standing[spec.name] = await survey.check(_collection(wire, spec)) or Standing(None)
    await survey.check(_copies(settings, nodes, {name: found.replicas for name, found in standing.items()}))
    open_door = await _asks_nobody(settings)
    await survey.check(
        known(
            "vectors.milvus.authorization",
            not open_door,
            f"Milvus asks {'nobody ' if open_door else ''}for a password.",
            "Set common.security.authorizationEnabled: true, and change root's password.",
            source=RIGHTS,
            level="info" if settings.service_env == "dev" else "error",
        )
    )
    survey.note(
        "vectors.milvus.interim-index",
        f"Whether {INTERIM_INDEX} is off cannot be asked. Milvus has it on, and then loses matches among vectors that it has not "
        "sealed yet.",
        f"Set {INTERIM_INDEX}: false in milvus.yaml and restart the query nodes (docs/operations.md, Milvus).",
    )
    access = await _access(wire, settings)
    for kind, setting in (("service", "VECTOR_DB_API_KEY"), ("reader", "VECTOR_DB_READER_KEY")):
        check = f"vectors.milvus.{kind}"
        login = next((one for one in logins(settings) if one.kind == kind), None)
        if login is None:
            text = f"{setting} names no user of its own, so none was looked for."
            survey.note(check, text, f"Set {setting} to user:password.")
        elif access is None:
            hint = "Set VECTOR_DB_ADMIN_KEY to an administrator's user:password."
            survey.note(check, "Users and roles may not be asked for with this key.", hint)
        else:
            await survey.check(_login(check, wire, settings, login, access, list(standing)))


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
        call_timeout=30.0,
    )


async def _nodes(wire: Wire) -> int | None:
    """How many query nodes there are; None where it may not be asked."""
    try:
        pool = await wire.call(lambda client: client.describe_resource_group(_POOL))
    except VectorStoreUnavailable:
        return None
    return int(pool.num_available_node)


async def _standing(wire: Wire, spec: CollectionSpec) -> Standing:
    try:
        indexed = await check_collection(wire, spec)
    except CollectionMissing:
        return Standing(None)
    except DependencyUnavailable as error:
        return Standing(0, error.message)
    return Standing(await _replicas(wire, spec.name) if indexed else 0)


async def _replicas(wire: Wire, collection: str) -> int:
    state = await wire.call(lambda client: client.get_load_state(collection))
    if getattr(state.get("state"), "name", "") != "Loaded":
        return 0
    return len(await wire.call(lambda client: client.describe_replica(collection)))


async def _access(wire: Wire, settings: Settings) -> Access | None:
    """None where it may not be asked."""
    named = logins(settings)
    try:
        known = set(await wire.call(lambda client: client.list_roles()))
        grants = {login.role: await _granted(wire, login.role) for login in named if login.role in known}
        there = set(await wire.call(lambda client: client.list_users()))
        users = {login.user: await _roles(wire, login.user) for login in named if login.user in there}
    except VectorStoreUnavailable:
        return None
    return Access(grants, users)


async def _granted(wire: Wire, role: str) -> set[tuple[str, str]]:
    answer = await wire.call(lambda client: client.describe_role(role))
    return {(grant["privilege"], grant["object_name"]) for grant in answer.get("privileges", ())}


async def _roles(wire: Wire, user: str) -> set[str]:
    answer = await wire.call(lambda client: client.describe_user(user))
    return set((answer or {}).get("roles", ()))


async def _asks_nobody(settings: Settings) -> bool:
    """Whether somebody with a made-up password gets in."""
    intruder = Wire(
        settings.vector_db_endpoint or "", lambda: "nobody:made-up-word", settings.service_env, call_timeout=10.0
    )
    try:
        await intruder.call(lambda client: client.list_collections(retry_times=1))
    except (VectorStoreUnavailable, DependencyUnavailable):
        return False
    finally:
        await intruder.close()
    return True


async def _admit(wire: Wire, login: Login, access: Access, collections: list[str]) -> list[str]:
    """Make what a login lacks: user, role, rights, and the role to the user."""
    made: list[str] = []
    grants, users = access
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


# --- what must hold


def _collection(wire: Wire, spec: CollectionSpec) -> Check[Standing]:
    name = spec.name

    async def make(before: Standing) -> Made[Standing]:
        await create_collection(wire, spec)  # also makes what one lacks that is there, and loads it
        line = f"{name} loaded with {spec.replicas} replicas"
        if before.replicas is None:
            line = f"collection {name}: {spec.dimension} dimensions, {spec.index}, {spec.replicas} replicas"
        return Made(await _standing(wire, spec), (line,))

    def says(found: Standing) -> str:
        if found.replicas is None:
            return f"There is no collection {name}."
        if found.wrong:
            return found.wrong
        return f"{name} {'is there, with its index, loaded' if found.replicas else 'lacks its index or is not loaded'}."

    def hint(found: Standing) -> str:
        if found.wrong:
            return "Nothing is dropped here: that is for you to decide."
        return MAKES if found.replicas is None else "apply makes its index and loads it."

    return Check(
        id="vectors.milvus.marks" if name.endswith("_removed") else "vectors.milvus.collection",
        source=INDEX,
        look=lambda: _standing(wire, spec),
        fits=lambda found: bool(found.replicas) and not found.wrong,
        says=says,
        make=make,
        makes=lambda found: not found.wrong,
        hint=hint,
    )


def _copies(settings: Settings, nodes: int | None, replicas: dict[str, int | None]) -> Check[bool]:
    few = {name: count for name, count in replicas.items() if count is not None and count < WANTED_REPLICAS}
    enough = not few and None not in replicas.values()
    level: Level = "warning"
    hint = "Release and load a collection that has too few with replica_number=2, when searches may fail for a moment."
    text = f"All collections have {WANTED_REPLICAS} replicas or more."
    if not enough:
        words = ", ".join(f"{name} has {count}" for name, count in few.items()) or "no collection yet"
        text = f"Not {WANTED_REPLICAS} replicas: {words}."
        if nodes is not None and nodes < WANTED_REPLICAS:
            text = f"Milvus has {nodes} query node, and {WANTED_REPLICAS} replicas need as many."
            hint = "Add a query node; then release and load the collections with that many replicas."
            level = "info" if settings.service_env == "dev" else "warning"
    evidence = {"queryNodes": nodes, "replicas": replicas}
    return known("vectors.milvus.replicas", enough, text, hint, source=REPLICAS, level=level, evidence=evidence)


def _login(
    id: str, wire: Wire, settings: Settings, login: Login, access: Access, collections: list[str]
) -> Check[Access]:
    wanted = {(p, c) for c in collections for p in login.privileges}

    def lacks(access: Access) -> list[str]:
        grants, users = access
        lacking = _lacking(login, grants.get(login.role, set()), collections)
        found = [f"role {login.role}"] if login.role not in grants else [f"{p} on {c}" for p, c in lacking]
        if login.user not in users:
            found.append(f"user {login.user}")
        elif login.role not in users[login.user]:
            found.append(f"role {login.role} at {login.user}")
        return found

    def too_many(access: Access) -> list[str]:
        more = sorted(f"{p} on {c}" for p, c in access.grants.get(login.role, set()) - wanted)
        others = sorted(access.users.get(login.user, set()) - {login.role, "public"})
        return [*more, *(f"role {name}" for name in others)]

    def says(access: Access) -> str:
        if lacking := lacks(access):
            return f"There is no {', '.join(lacking)}."
        if more := too_many(access):
            return f"{login.user} may do more than it needs: {', '.join(more)}."
        return f"{login.user} may do what it needs on {', '.join(collections)}, and nothing else."

    async def make(before: Access) -> Made[Access]:
        lines = await _admit(wire, login, before, collections)
        return Made(await _access(wire, settings) or before, tuple(lines))

    return Check(
        id=id,
        source=RIGHTS,
        look=lambda: access,
        fits=lambda access: not lacks(access) and not too_many(access),
        says=says,
        make=make,
        makes=lambda access: bool(lacks(access)),
        hint=lambda access: MAKES if lacks(access) else "Revoke it, or it is more than a leak of this key should open.",
    )
