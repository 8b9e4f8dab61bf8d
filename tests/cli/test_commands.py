"""memoryctl as a shell sees it: what goes where, exit codes, and one clear line for every error."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jwt
import pytest

from memory_layer.cli import connection, main
from memory_layer.cli.access import database_of
from memory_layer.cli.render import clean, snippet
from memory_layer.client.errors import MemoryLayerClientError
from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.ops import tokens
from memory_layer.ops.durable_files import ensure_key
from tests.support.product import run_ctl, run_ctl_anew

ROOT = Path(__file__).resolve().parents[2]


class Product(Protocol):
    """A running Memory Layer (fixture ``product``)."""

    url: str
    token: str
    database: str


def ctl(*args: str, stdin: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run memoryctl in a process of its own, as a shell does."""
    clean_env = {k: v for k, v in os.environ.items() if not k.startswith(("MEMORY_", "SERVICE_ENV"))}
    return run_ctl(*args, env=clean_env | {"PYTHONPATH": str(ROOT)} | env, timeout=60, stdin=stdin, cwd=cwd)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """The same in this process, for the many cases that need no process of their own."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL at which nothing answers: the port is taken but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


# --- help and usage


def test_help_teaches_and_is_quick() -> None:
    # Typically 0.2 s; of the processor's time, which a loaded machine does not lengthen much. Importing the server takes longer.
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = run_ctl_anew("--help")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0
    assert 'eval "$(memoryctl env)"' in shown.stdout
    assert shown.stderr == ""
    assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 1.0


def test_the_overview_loads_no_command() -> None:
    code = (
        "import sys\nfrom memory_layer.cli.app import run\nrun(['--help'])\n"
        "print([m for m in ('httpx2', 'starlette', 'psycopg', 'numpy', 'msgspec') if m in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert shown.stderr == "[]\n"


def test_every_command_loads_alone() -> None:
    """Each in a Python that has loaded no other, so that none lives on what another imported. Elsewhere here commands are forks."""
    script = """
import importlib, os, sys
from memory_layer.cli.app import COMMANDS
for name in sorted({path.partition(":")[0] for _, path, *_ in COMMANDS}):
    if os.fork() == 0:
        importlib.import_module(name)
        sys.exit()
    if os.wait()[1]:
        print(name)
"""
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert (shown.stdout, shown.stderr) == ("", "")


@pytest.mark.parametrize(
    "command", ["env", "token issue", "ingest", "search", "node create", "node list", "artifacts put", "artifacts get"]
)
def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "For example:" in out
    assert f"memoryctl {command}" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["remember"], 'Unknown command "remember"'),
        (["search"], "TEXT"),
        (["search", "x", "--mode", "psychic"], "psychic"),
        (["search", "x", "--top-k", "many"], "many"),
        (["search", "x", "--filter", "{"], "--filter is no JSON"),
        (["search", "x", "--filter", "[]"], "--filter must be a JSON object"),
        (["node", "get"], "NODE_ID"),
        (["node", "update", "some-id"], "nothing to update"),
        (["node", "list", "--limit", "-1"], "--limit"),
        (["ingest"], "at least one file or folder"),
        (["ingest", "no-such-file"], "no-such-file does not exist"),
        (["ingest", ".", "--content", "plain"], "names no field"),
        (["ingest", ".", "--concurrency", "0"], "--concurrency"),
        (["ingest", ".", "--watch", "--dry-run"], "--dry-run writes nothing"),
        (["ingest", ".", "--watch", "--interval", "0"], "--interval is 0.1 to 3600"),
        (["ingest", ".", "--encoding", "no-such"], "no encoding of texts"),
        (["artifacts", "put", "no-such-file"], "no-such-file"),
        (["artifacts", "get", "id", "--output", "-", "--json"], "choose one"),
        (["token", "issue"], "--service"),
        (["token", "issue", "--service", "x", "--scope", "memory:everything"], "memory:everything"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.delenv("SERVICE_ENV", raising=False)
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.startswith("memoryctl: ")
    assert err.count("\n") == 1


# --- no server


@pytest.mark.parametrize(
    "args",
    [
        ["search", "x"],
        ["node", "get", "some-id"],
        ["node", "list", "--json"],
        ["artifacts", "get", "some-id"],
        ["ingest", str(ROOT / "LICENSE")],
    ],
    ids=lambda args: args[0] + args[1][:5],
)
def test_nobody_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nowhere: str, args: list[str]
) -> None:
    monkeypatch.setenv("MEMORY_URL", nowhere)
    monkeypatch.setattr("memory_layer.client.retry.random.uniform", lambda *_: 0.0)
    code, out, err = run(capsys, *args)
    assert code == 3
    assert out == ""
    assert nowhere in err
    assert "memoryctl up" in err
    assert err.count("\n") == 1


def test_a_url_that_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_URL", "localhost:4300")
    code, _, err = run(capsys, "search", "x")
    assert code == 2
    assert "MEMORY_URL" in err


# --- env


def write_up(folder: Path, **values: Any) -> None:
    (folder / "up.json").write_text(json.dumps(values))


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_env_prints_what_a_shell_evaluates(tmp_path: Path, listening: str) -> None:
    write_up(tmp_path, url=listening, token="a.b'c $(x)", pid=os.getpid())
    shown = ctl("env", "--data", str(tmp_path))
    assert shown.returncode == 0
    script = shown.stdout + 'printf "%s %s" "$MEMORY_URL" "$MEMORY_TOKEN"'
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10, check=True)
    assert told.stdout == f"{listening} a.b'c $(x)"


def test_env_finds_the_data_folder_by_the_setting(tmp_path: Path, listening: str) -> None:
    write_up(tmp_path, url=listening, token="t", pid=os.getpid())
    shown = ctl("env", "--json", MEMORY_DATA=str(tmp_path))
    values = {"MEMORY_URL": listening, "MEMORY_TOKEN": "t", "MEMORY_DATA": str(tmp_path)}
    assert json.loads(shown.stdout) == values


def test_env_without_a_running_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, listening: str, nowhere: str
) -> None:
    def refused() -> str:
        code, out, err = run(capsys, "env", "--data", str(tmp_path))
        assert code == 3
        assert out == ""
        assert f"memoryctl up --data {tmp_path}" in err
        return err

    assert "no `memoryctl up` runs" in refused()
    write_up(tmp_path, url=nowhere, token="t", pid=os.getpid())
    assert "has stopped" in refused()
    gone = subprocess.Popen(["true"])
    gone.wait()
    write_up(tmp_path, url=listening, token="t", pid=gone.pid)
    assert "has stopped" in refused()
    (tmp_path / "up.json").write_text("{")
    assert "cannot be understood" in refused()


# --- tokens


def test_a_token_says_who_for_how_long_and_what(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ensure_key(tmp_path / "keys" / "jwt.pem")
    args = ["--service", "notebook", "--tenant", "acme", "--scope", "memory:read,audit:read", "--ttl", "900"]
    code, out, err = run(capsys, "token", "issue", *args, "--data", str(tmp_path))
    assert (code, err) == (0, "")
    claims = jwt.decode(
        out.strip(),
        tokens.public_key_pem(tmp_path / "keys" / "jwt.pem"),
        algorithms=["EdDSA"],
        audience="memory-layer",
        issuer="memory-layer",
    )
    assert claims["sub"] == "notebook"
    assert claims["tenant"] == "acme"
    assert claims["scope"] == "memory:read audit:read"
    assert claims["exp"] - claims["iat"] == 900
    assert claims["jti"]


def test_tokens_are_refused_in_prod(tmp_path: Path) -> None:
    ensure_key(tmp_path / "keys" / "jwt.pem")
    refused = ctl("token", "issue", "--service", "x", "--data", str(tmp_path), SERVICE_ENV="prod")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "prod" in refused.stderr


def test_a_token_without_a_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "token", "issue", "--service", "x", "--data", str(tmp_path))
    assert (code, out) == (3, "")
    assert "memoryctl up" in err


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "jwt.pem"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ensure_key, [key] * 16))
    made = key.read_bytes()
    ensure_key(key)
    assert key.read_bytes() == made
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [file.name for file in key.parent.iterdir()] == ["jwt.pem"]


@pytest.mark.parametrize(
    "given",
    [{"service": ""}, {"service": "a b"}, {"tenant": ""}, {"tenant": "-x"}, {"scopes": []}, {"ttl": 0}],
    ids=str,
)
def test_a_token_that_no_server_would_take(tmp_path: Path, given: dict[str, Any]) -> None:
    ensure_key(tmp_path / "jwt.pem")
    values: dict[str, Any] = {"service": "s", "tenant": "t", "scopes": ["memory:read"], "ttl": 60} | given
    with pytest.raises(UsageError):
        tokens.issue(tmp_path / "jwt.pem", **values)


def test_a_key_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "jwt.pem").write_text("not a key")
    with pytest.raises(DependencyUnavailable, match="no private key"):
        tokens.issue(tmp_path / "jwt.pem", "s", "t", ["memory:read"], 60)


# --- printing


def test_stored_text_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b[31mb\x07\x9b\u202ec\nd\te") == "a\ufffd[31mb\ufffd\ufffd\ufffdc d e"
    assert clean("a\nb", keep="\n") == "a\nb"
    assert clean("žluťoučký 🐕") == "žluťoučký 🐕"


def test_snippets_are_one_line() -> None:
    assert snippet("a\n\n b") == "a b"
    assert len(snippet("word " * 1000)) == 160


def test_completion_can_be_installed(tmp_path: Path) -> None:
    file = tmp_path / "memoryctl.bash"
    done = ctl("--install-completion", "--shell", "bash", "--output", str(file), HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "ingest" in file.read_text()


# --- against the product


@pytest.fixture
def shell(product: Product) -> Any:
    def call(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return ctl(*args, stdin=stdin, MEMORY_URL=product.url, MEMORY_TOKEN=product.token)

    return call


def test_a_nodes_life(shell: Any) -> None:
    made = shell("node", "create", "Caroline adopted a puppy.", "--metadata", '{"kind": "fact"}', "--owner", "caroline")
    assert made.returncode == 0, made.stderr
    node_id = made.stdout.strip()
    assert "of the audit log. To prove it: memoryctl audit proof " in made.stderr
    got = json.loads(shell("node", "get", node_id, "--json").stdout)
    assert (got["content"], got["owner"], got["version"]) == ("Caroline adopted a puppy.", "caroline", 1)

    assert (
        shell("node", "update", node_id, "--metadata", '{"kind": null, "sure": true}', "--if-match", "1").returncode
        == 0
    )
    stale = shell("node", "update", node_id, "--content", "-", "--if-match", "1", stdin="late")
    assert stale.returncode == 1
    assert "PRECONDITION_FAILED" in stale.stderr
    assert json.loads(shell("node", "get", node_id, "--json").stdout)["metadata"] == {"sure": True}

    whose = (
        "--owner",
        "joanna",
        "--subject",
        "caroline",
        "--subject",
        "joanna",
        "--occurred-at",
        "2026-01-31T09:30:00Z",
    )
    assert shell("node", "update", node_id, *whose).returncode == 0
    got = json.loads(shell("node", "get", node_id, "--json").stdout)
    assert (got["owner"], got["subjects"]) == ("joanna", ["caroline", "joanna"])
    assert got["occurredAt"] == "2026-01-31T09:30:00.000000Z"
    assert shell("node", "update", node_id, "--occurred-at", "").returncode == 0
    assert json.loads(shell("node", "get", node_id, "--json").stdout)["occurredAt"] is None

    assert shell("node", "hold", node_id, "--reason", "litigation").returncode == 0
    held = shell("node", "delete", node_id, "--yes")
    assert held.returncode == 4
    assert "LEGAL_HOLD" in held.stderr
    assert shell("node", "release", node_id, "--reason", "closed").returncode == 0
    assert shell("node", "delete", node_id, "--yes").returncode == 0
    assert shell("node", "get", node_id).returncode == 1

    entries = json.loads(shell("node", "history", node_id, "--json").stdout)["items"]
    seqs = [entry["seq"] for entry in entries]
    assert seqs == sorted(seqs)
    assert len(seqs) == 7
    assert made.stderr.split()[-1] == entries[0]["auditId"]
    header, *rows = [line.split("\t") for line in shell("node", "history", node_id).stdout.splitlines()]
    assert header == ["seq", "type", "when", "actor", "reason", "audit id"]
    assert [row[4] for row in rows] == ["", "", "", "", "litigation", "closed", ""]
    assert {(row[3], row[5]) for row in rows} == {(entry["actor"], entry["auditId"]) for entry in entries}


def test_search_prints_the_answer_of_the_api(shell: Any) -> None:
    shell("node", "create", "Zebras graze at dawn near the watering hole.", "--wait")
    answer = json.loads(shell("search", "zebras grazing", "--top-k", "3", "--json").stdout)
    assert answer["results"][0]["content"].startswith("Zebras graze")
    assert "exact" in answer
    table = shell("search", "zebras grazing", "--top-k", "3").stdout.splitlines()
    assert table[0] == "score\tid\ttext\tsource"
    assert "Zebras graze" in table[1]


def test_artifacts_are_listed_and_deleted(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"listed")
    node = shell("node", "create", "with a file").stdout.strip()
    first, second = (
        shell("artifacts", "put", str(tmp_path / "c.txt"), "--node", node).stdout.strip() for _ in range(2)
    )
    items = json.loads(shell("artifacts", "list", "--node", node, "--json").stdout)["items"]
    assert [one["artifactId"] for one in items] == [second, first]
    header, row = [
        line.split("\t") for line in shell("artifacts", "list", "--node", node, "--limit", "1").stdout.splitlines()
    ]
    assert header == ["id", "name", "bytes", "node", "created", "kept"]
    assert row[:4] == [second, "c.txt", "6", node]
    assert shell("node", "hold", node, "--reason", "litigation").returncode == 0
    held = shell("artifacts", "delete", first, "--yes")
    assert (held.returncode, "LEGAL_HOLD" in held.stderr) == (4, True)
    assert shell("node", "release", node, "--reason", "closed").returncode == 0
    for _ in range(100):  # the worker tells the object store first
        done = shell("artifacts", "delete", second, "--yes")
        if done.returncode == 0:
            break
        assert "was not told yet" in done.stderr
    assert "of the audit log" in done.stderr
    assert shell("artifacts", "get", second).returncode == 1
    assert shell("artifacts", "list", "--limit", "-1").returncode == 2


def test_artifacts_in_and_out(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(os.urandom(300_000))
    put = shell("artifacts", "put", str(file))
    assert put.returncode == 0, put.stderr
    got = shell("artifacts", "get", put.stdout.strip(), "--output", str(tmp_path / "b.bin"))
    assert got.returncode == 0, got.stderr
    assert (tmp_path / "b.bin").read_bytes() == file.read_bytes()


def test_a_forged_token_is_refused(product: Product) -> None:
    refused = ctl("search", "x", MEMORY_URL=product.url, MEMORY_TOKEN="forged")
    assert refused.returncode == 4
    assert "MEMORY_TOKEN" in refused.stderr


def test_what_fails_on_the_database_of_up_is_reported_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dependency that is unavailable to a command is no sign that `up` does not run: no second Postgres is started."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / "postgres").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        up = {"pid": os.getpid(), "url": f"http://127.0.0.1:{listening.getsockname()[1]}", "token": "t"}
        (tmp_path / "up.json").write_text(json.dumps(up | {"database": "postgresql:///memory"}))

        def work() -> None:
            with database_of(tmp_path) as dsn:
                assert dsn == "postgresql:///memory"
                raise DependencyUnavailable("/backup cannot be written to.")

        with pytest.raises(DependencyUnavailable, match="cannot be written to"):
            work()


@pytest.mark.parametrize(
    "dsn", ["postgresql:/u:sekret@h/db", "u:sekret@h", "postgresql://u:sek/ret@h/db", "host=h sekret"]
)
@pytest.mark.parametrize("setting", ["DATABASE_URL", "VECTOR_DB_ENDPOINT"])
@pytest.mark.parametrize("words", ["vectors reconcile", "provision plan vectors", "provision apply vectors --yes"])
def test_a_malformed_address_of_postgres_is_not_shown(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    product: Product,
    words: str,
    setting: str,
    dsn: str,
) -> None:
    """It may hold a password, and a log or a report is no place for one."""
    if words.startswith("vectors") and setting == "VECTOR_DB_ENDPOINT":
        monkeypatch.setenv("DATABASE_URL", product.database)
    monkeypatch.setenv(setting, dsn)
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert "no connection string of Postgres" in err or f"settings do not fit ({setting}" in err
    assert "sek" not in out + err


@pytest.mark.parametrize("verb", ["plan", "apply", "probe"])
def test_every_part_of_provision_has_its_line_of_help(verb: str) -> None:
    shown = ctl("provision", verb, "--help", COLUMNS="200").stdout.splitlines()
    rows = [line.strip("│ ").split(None, 1) for line in shown if line.startswith("│ ") and line[2].isalpha()]
    assert {row[0] for row in rows} >= ({"buckets"} if verb == "probe" else {"buckets", "keys", "queue", "vectors"})
    assert [row for row in rows if len(row) == 1] == []


def test_a_server_that_is_slow_is_not_reported_as_absent() -> None:
    slow = connection.explain(MemoryLayerClientError("TIMEOUT", "http://x did not answer in time."))
    absent = connection.explain(MemoryLayerClientError("UNREACHABLE", "no Memory Layer answers at http://x."))
    assert (slow[1], "memoryctl up" in slow[0], "/healthz" in slow[0]) == (3, False, True)
    assert (absent[1], "memoryctl up" in absent[0]) == (3, True)
