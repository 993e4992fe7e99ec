"""Install a real Label Studio for the tests, once for all checkouts of a user; needs nothing but Python.

    python tests/labelstudio/install.py

It gets a virtual environment of its own in the user's cache folder, beside it a data folder with its tables made, so
that a test's server starts in three seconds instead of twenty-five. ANNOTATOR_LABEL_STUDIO names another environment.
Where it cannot be installed the tests that need it are left out and say so.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

VERSION = "1.23.2"
VARIABLE = "ANNOTATOR_LABEL_STUDIO"
EMAIL, PASSWORD, TOKEN = "admin@example.com", "secret-pass-1", "0123456789abcdef0123456789abcdef01234567"
"""The administrator of every test server."""
KEPT = ("label_studio.sqlite3", ".env")
"""What a migrated data folder consists of."""
_START = "from label_studio.server import main; main()"  # the script in bin/ would not survive the folder's renaming


def home() -> Path:
    """Return where the environment is, or is to be."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "annotator-tests" / f"label-studio-{VERSION}"


def installed() -> bool:
    """Tell whether there is an environment to start a server from."""
    return (home() / "bin" / "python").exists()


def template() -> Path:
    """Return the migrated data folder; one that is named by the variable may lack it."""
    return home() / "template"


def command(port: int, environment: Path | None = None) -> list[str]:
    """Return the command line of a server."""
    python = (environment or home()) / "bin" / "python"
    return [str(python), "-c", _START, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]


def variables(data: Path, port: int, documents: Path) -> dict[str, str]:
    """Return the environment of a server: nothing leaves the machine, hooks to loopback are allowed."""
    off = ("COLLECT_ANALYTICS", "LATEST_VERSION_CHECK", "CONVERTER_DOWNLOAD_RESOURCES", "SSRF_PROTECTION_ENABLED")
    on = ("ENABLE_LEGACY_API_TOKEN", "DISABLE_SIGNUP_WITHOUT_LINK", "FEATURE_FLAGS_OFFLINE")
    ours = {
        **dict.fromkeys(off, "false"),
        **dict.fromkeys(on, "true"),
        "BASE_DATA_DIR": str(data),
        "USERNAME": EMAIL,
        "PASSWORD": PASSWORD,
        "USER_TOKEN": TOKEN,
        "HOST": f"http://127.0.0.1:{port}",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "ML_BLOCK_LOCAL_IP": "false",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(documents),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LABEL_STUDIO_", "DJANGO_"))}
    return kept | {f"LABEL_STUDIO_{name}": value for name, value in ours.items()}


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, seconds: float) -> None:
    """Wait for `/health`.

    Raises:
        RuntimeError: the process has ended, or the time is over.
    """
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise RuntimeError(f"Label Studio ended with code {process.returncode} instead of starting")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"Label Studio was not ready after {seconds:.0f} seconds")


def migrate(environment: Path, target: Path, port: int) -> None:
    """Start a server on an empty data folder and keep what it made of it in `target`."""
    with tempfile.TemporaryDirectory(prefix="annotator-ls-") as scratch:
        data = Path(scratch)
        log = data / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                command(port, environment), env=variables(data, port, data), stdout=said, stderr=said, cwd=data
            )
            try:
                wait_until_ready(process, port, 180)
            finally:
                process.terminate()
                process.wait(30)
        target.mkdir(parents=True)
        for name in KEPT:
            shutil.copy2(data / name, target / name)


def install() -> None:
    """Make the environment and its template complete under a temporary name, then rename.

    Raises:
        OSError, subprocess.CalledProcessError, RuntimeError: it cannot be installed here.
    """
    place = home()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it: wait, then find it done
        if installed():
            return
        print(f"installing Label Studio {VERSION} for the tests into {place} (1 GB, two minutes)", flush=True)
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            _fill(partial)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _fill(environment: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, f"label-studio=={VERSION}"]).returncode:
        raise RuntimeError("pip could not get it")
    migrate(environment, environment / "template", free_port())


def free_port() -> int:
    """Return a port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    try:
        if not installed():
            install()
    except (OSError, subprocess.CalledProcessError, RuntimeError) as problem:
        print(f"Label Studio cannot be installed ({problem}): tests that need it are left out", file=sys.stderr)
