"""The environments of the SDKs' tests: ``python -m tests.support.environments newest older --python 3.12``.

Each file ``tests/environments/NAME.in`` names SDKs that can live together, and ``NAME.txt`` is its resolution together
with the package's own dependencies (made with ``--compile``). From it uv makes ``.cache/environments/NAME-PYTHON`` in
some seconds, once; then the tests in ``tests/sdks`` run there, and test whatever is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LISTS = ROOT / "tests" / "environments"
CACHE = ROOT / ".cache" / "environments"

NEWEST = ("newest", "litellm")
"""Those of `make test`."""

OLDER = ("older", "oldest")
"""Those that are only in `make test-matrix`."""

PYTHONS = ("3.11", "3.12", "3.13")
"""What `make test-matrix` looks for."""

UV = (sys.executable, "-m", "uv")


def compile_lists() -> None:
    """Resolves each ``.in`` to its ``.txt``; what is pinned there stays unless the file is deleted."""
    for name in (*NEWEST, *OLDER):
        source, target = LISTS / f"{name}.in", LISTS / f"{name}.txt"
        command = [*UV, "pip", "compile", "--quiet", "--universal", "--python-version", PYTHONS[0], "--no-annotate"]
        header = ["--custom-compile-command", "python -m tests.support.environments --compile"]
        subprocess.run([*command, *header, "-o", target, source, ROOT / "pyproject.toml"], check=True, cwd=ROOT)


def find_python(version: str) -> str | None:
    """The interpreter of a version, such as 3.12; None where this machine has none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    # pyenv's own shim is on PATH for versions that are installed but not switched on; it only says so.
    for candidate in (shutil.which(name), *sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)):
        if candidate and subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return str(candidate)
    return None


def make(name: str, version: str) -> Path:
    """The environment's interpreter; the environment is made where it is missing, or where its list has changed."""
    python = find_python(version)
    if python is None:
        raise LookupError(f"there is no Python {version} here")
    folder = CACHE / f"{name}-{version}"
    wanted = hashlib.sha256((LISTS / f"{name}.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = folder / ".made"
    inside = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([*UV, "venv", "--quiet", "--clear", "--python", python, folder], check=True)
        install = [*UV, "pip", "install", "--quiet", "--python", inside, "--no-deps"]
        subprocess.run([*install, "-r", LISTS / f"{name}.txt", "-e", ROOT], check=True)
        stamp.write_text(wanted)
    return inside


@dataclass
class Job:
    """The SDKs' tests in one environment, and how they went."""

    name: str
    version: str
    passed: bool = False
    said: str = ""
    """How pytest counts them, or why they did not run."""
    output: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"SDKs {self.name}, Python {self.version}"


def run(job: Job, arguments: list[str], *, processes: str, live: bool) -> Job:
    """Runs the tests of ``job``; ``live``: what they say is shown at once, and not kept."""
    begun = time.monotonic()
    try:
        inside = make(job.name, job.version)
        command = [
            str(inside),
            "-m",
            "pytest",
            "-c",
            "tests/sdks/pytest.ini",
            "--confcutdir",
            "tests/sdks",
            "--quiet",
            "--numprocesses",
            processes,
            "tests/sdks",
            *arguments,
        ]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTEST_"))}
        pipe = None if live else subprocess.PIPE
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        job.passed = done.returncode == 0
        job.output = done.stdout or ""
        counted = [line for line in job.output.splitlines() if _COUNTED.search(line)]
        job.said = counted[-1].strip("= ") if counted else f"exit status {done.returncode}"
    except Exception as failure:  # uv, the network: the other environments go on
        job.said = f"could not be made: {failure}"
    job.seconds = time.monotonic() - begun
    return job


_COUNTED = re.compile(r"\d+ (?:passed|failed|error)")


def run_side_by_side(jobs: list[Job], arguments: list[str]) -> None:
    """Each in one process, as many at once as there are cores: what an environment imports, it imports once."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        running = [pool.submit(run, job, arguments, processes="0", live=False) for job in jobs]
        for done, finished in enumerate(as_completed(running), 1):
            job = finished.result()
            print(f"-- {done} of {len(jobs)}: {job}: {job.said}, {job.seconds:.0f} s", flush=True)
            if not job.passed:
                print(job.output, flush=True)


def table(jobs: list[Job], missing: list[str]) -> str:
    """What ran, how it went and how long it took; and which Python was not there."""
    rows = [("environment", "Python", "", "tests", "seconds")]
    rows += [(job.name, job.version, "ok" if job.passed else "FAILED", job.said, f"{job.seconds:.0f}") for job in jobs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"Python {version} was not found on this machine" for version in missing)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join((*NEWEST, *OLDER))}; default: the newest")
    parser.add_argument("--python", action="append", dest="pythons", help="such as 3.12; default: the running one")
    parser.add_argument("--matrix", action="store_true", help="every environment, with every Python that is found")
    parser.add_argument("--compile", action="store_true", help="resolve the lists anew, and run nothing")
    given, arguments = parser.parse_known_args()
    if given.compile:
        compile_lists()
        return 0
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = given.names or ((*NEWEST, *OLDER) if given.matrix else NEWEST)
    versions = given.pythons or (PYTHONS if given.matrix else [running])
    missing = [version for version in versions if given.matrix and find_python(version) is None]
    # The one that takes longest first, so that nothing is left to wait for at the end.
    jobs = [Job(name, version) for name in names for version in versions if version not in missing]
    begun = time.monotonic()
    if given.matrix:
        run_side_by_side(jobs, arguments)
    else:
        for job in jobs:
            print(f"-- {job}", flush=True)
            run(job, arguments, processes="auto", live=True)
            print(f"-- {job.seconds:.0f} s", flush=True)
    failed = [str(job) for job in jobs if not job.passed]
    if given.matrix:
        total = f"{len(jobs) - len(failed)} of {len(jobs)} passed, {time.monotonic() - begun:.0f} s in all"
        print(f"\n{table(jobs, missing)}\n{total}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
