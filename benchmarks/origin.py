"""Where results come from: the command, the commit, the system, the processor."""

import datetime
import platform
import shlex
import subprocess
import sys
from pathlib import Path


def origin() -> dict[str, str | None]:
    """The date, the command, the versions of Python and of the system, and the commit, with a "+" if files differ from it."""
    git = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]  # no tag, which leaves the commit
    try:
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # git is not installed
        commit = None
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    system = {"python": platform.python_version(), "platform": platform.platform()}
    return {"date": date, "command": shlex.join(["python", *sys.argv]), "commit": commit, **system}


def processor() -> str:
    """The processor's name, which Python itself does not know on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
