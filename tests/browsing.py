"""What stored players hold, and what a page with one leaves behind in headless Chromium."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from companion import players

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")


def spec_of(player: players.Player) -> dict[str, Any]:
    """Return what the script of a player is given."""
    (found,) = re.findall(r'<figure [^>]*data-spec="([^"]*)"', player.html)
    return json.loads(html.unescape(found))


def browse(folder: Path, body: str, *options: str) -> str:
    """Return the text that a page leaves in its element answer."""
    page = folder / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf8"><body><pre id="answer"></pre>{body}', encoding="utf8")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions")
    command = [str(BROWSER), *quiet, f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stdout[-500:] + done.stderr[-2000:]
    return html.unescape(found[1])
