"""What the scripts that try the project from outside share: a copy of the tree, and environments to try it in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"


class Failed(Exception):
    """A step that did not work; the message is for the reader, without a traceback."""


def clean_environment(**more: str) -> dict[str, str]:
    """Return the variables of this process without those that show Python other packages."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "MPLBACKEND", "TQDM_DISABLE"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return {**kept, "PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more}


def run(*command: str | Path, cwd: Path = ROOT, **more: str) -> str:
    """Run a command and return what it printed.

    Raises:
        Failed: with the end of what it printed, where it did not end well.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, env=clean_environment(**more), capture_output=True, text=True)
    except FileNotFoundError:
        raise Failed(f"there is no program {words[0]}.") from None
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise Failed(f"`{' '.join(words)}` ended with {done.returncode}:\n{end}")
    return done.stdout


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment(folder: Path, wanted: list[str], *, python: str = sys.executable, fresh: bool = False) -> Path:
    """Make an environment that holds what is wanted, unless it is there and may be old, and return its interpreter."""
    stamp, content = folder / "wanted.txt", "\n".join([run(python, "--version").strip(), *wanted]) + "\n"
    if fresh or not stamp.exists() or stamp.read_text(encoding="utf8") != content:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making {folder}: {' '.join(wanted)}", flush=True)
        run(python, "-m", "venv", folder)
        run(python_of(folder), "-m", "pip", "install", "--quiet", *wanted)
        stamp.write_text(content, encoding="utf8")
    return python_of(folder)


def snapshot(folder: Path, root: Path = ROOT) -> Path:
    """Copy what git would keep of the tree, changes and new files included, into a folder, and return it."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root).split("\0")
    for name in filter(None, listed):
        if (root / name).is_file():  # a file that was deleted is still listed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    return folder


def repository(folder: Path, branch: str) -> Path:
    """Make the folder a git repository with one commit on `branch`, from which pip can install, and return it."""
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false")
    run("git", "init", "--quiet", f"--initial-branch={branch}", folder)
    run("git", "-C", folder, "add", "--all", "--force")
    run("git", "-C", folder, *who, "commit", "--quiet", "--no-verify", "--message", "snapshot")
    run("git", "-C", folder, "config", "uploadpack.allowFilter", "true")
    return folder
