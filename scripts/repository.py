"""Set the address of the repository: in _config.yml, the one place that holds it, and in every file that repeats it.

    make repository URL=https://github.com/me/my-book
    make repository URL=https://github.com/me/my-book BRANCH=develop

A second run changes nothing, and one without BRANCH keeps the branch. It needs nothing but Python.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".cff", ".css", ".html", ".ipynb", ".js", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
PLACEHOLDER = "OWNER"  # until `make repository` has run
NOT_OURS = {".git", ".venv", "_build", "dist", "mathjax", "node_modules", "results"}
EXAMPLES = {
    "package-lock.json",
    "repository.py",
    "test_repository.py",
}  # addresses of others, or invented
# The set-up cell as it stands in the file of a notebook, where a quotation mark is written \"
SETUP = re.compile(r'(%pip install -q --no-deps \\"diffusion-companion @ git\+)([^"\\\s]*)(?=\\")')
USAGE = "https://github.com/OWNER/NAME, such as https://github.com/me/my-book"


@dataclass(frozen=True)
class Repository:
    """Where the book lives, and the addresses that follow from it."""

    owner: str
    name: str
    branch: str = "main"

    @property
    def url(self) -> str:
        """The page of the repository."""
        return f"https://github.com/{self.owner}/{self.name}"

    @property
    def requirement(self) -> str:
        """What pip installs the companion from, after `git+`: with the branch unless that is main."""
        return self.url if self.branch == "main" else f"{self.url}@{self.branch}"

    @property
    def pages(self) -> str:
        """Where GitHub Pages serves the built book."""
        host = f"{self.owner.lower()}.github.io"
        return f"https://{host}/" if self.name.lower() == host else f"https://{host}/{self.name}/"


def parse(url: str, branch: str = "main") -> Repository:
    """Return the repository at an address; `.git` and slashes at the end are dropped.

    Raises:
        ValueError: what GitHub cannot serve, such as another scheme or a name with a blank.
    """
    found = re.fullmatch(r"([a-z+]+)://([^/]*)/?(.*)", url.strip())
    if not found or found[1] != "https":
        raise ValueError(f"URL is {url!r}; it must start with https:// : {USAGE}.")
    if found[2].lower() != "github.com":
        raise ValueError(f"URL has the host {found[2]!r}; it must be github.com, from where Colab opens notebooks.")
    parts = re.sub(r"/*$", "", found[3]).removesuffix(".git").split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"URL is {url!r}; it must name one owner and one repository: {USAGE}.")
    owner, name = parts
    if len(owner) > 39 or not re.fullmatch(r"[A-Za-z0-9](?:-?[A-Za-z0-9])*", owner):
        raise ValueError(f"the owner is {owner!r}; it must be up to 39 letters and digits, single hyphens between.")
    if not re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII) or name in {".", ".."}:
        raise ValueError(f"the repository is called {name!r}; it may hold letters, digits, - _ and . only.")
    if not re.fullmatch(r"\w[\w./-]*", branch, re.ASCII) or branch.endswith(("/", ".")) or ".." in branch:
        raise ValueError(f"BRANCH is {branch!r}; it must be the name of a branch, such as main.")
    return Repository(owner, name, branch)


def configured(root: Path = ROOT) -> Repository:
    """Return the repository that `_config.yml` names.

    Raises:
        ValueError: a file without the address, or with one that GitHub cannot serve.
    """
    text = (root / "_config.yml").read_text(encoding="utf8")
    found = {key: re.search(_in_config(key), text, re.MULTILINE) for key in ("url", "branch")}
    if not all(found.values()):
        raise ValueError("_config.yml must have the block `repository:` with url and branch.")
    return parse(found["url"][2], found["branch"][2])


def _in_config(key: str) -> str:
    return rf"(^repository:\n(?:[ ]+.*\n)*?[ ]+{key}: )(\S+)"


def places(new: Repository) -> dict[str, list[tuple[str, str]]]:
    """Return what must name the repository: file -> (pattern with two groups, what its second group must be)."""
    urls = {
        "Documentation": new.pages,
        "Repository": new.url,
        "Issues": f"{new.url}/issues",
        "Changelog": f"{new.url}/blob/{new.branch}/CHANGELOG.md",
    }
    return {
        "_config.yml": [
            (_in_config("url"), new.url),
            (_in_config("branch"), new.branch),
            (r"(^  baseurl: )(\S+)", '""' if new.owner == PLACEHOLDER else f'"{new.pages}"'),  # in shared links
        ],
        "pyproject.toml": [(rf'(^{key} = ")([^"]*)(?=")', url) for key, url in urls.items()],
        "CITATION.cff": [("(^repository-code: )(.*)", new.url), ("(^url: )(.*)", new.pages)],
        ".github/workflows/tests.yml": [(r"(^  push:\n    branches: \[)([^\]]*)", new.branch)],
        ".github/workflows/book.yml": [(r"(^  push:\n    branches: \[)([^\]]*)", new.branch)],
    }


def files(root: Path = ROOT) -> list[Path]:
    """Return the text files that we write: no pictures, no results, nothing that was built or comes from others."""
    found = []
    for folder, inside, names in os.walk(root):
        inside[:] = sorted(name for name in inside if name not in NOT_OURS and not name.endswith("_cache"))
        paths = (Path(folder, name) for name in sorted(names))
        found += [p for p in paths if (p.suffix in TEXT or p.name == "Makefile") and p.name not in EXAMPLES]
    return found


def rewritten(path: str, text: str, old: Repository, new: Repository) -> str:
    """Return the text of a file with the new address. In a notebook only the set-up cell changes."""
    if path.endswith(".ipynb"):
        text, count = SETUP.subn(lambda match: match[1] + new.requirement, text)
        if path.startswith("book/") and count != 1:
            raise ValueError(f"{path} has {count} set-up cells; it must have one: see tests/test_notebooks.py.")
        return text
    for pattern, value in places(new).get(path, []):
        text, count = re.subn(pattern, lambda match, value=value: match[1] + value, text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path} has {count} lines like {pattern!r}; it must have one, to hold {value}.")
    # a link in any other place: on GitHub or in Colab, perhaps with a branch, or to the served book
    here = rf"{re.escape(old.owner)}/{re.escape(old.name)}(?![\w-]|\.(?!git\b)\w)"  # and not a longer name
    link = rf"(github(?:usercontent)?(?:\.com)?/){here}(?:(/(?:blob|tree|raw)/){re.escape(old.branch)}(?=/))?"
    text = re.sub(link, lambda m: f"{m[1]}{new.owner}/{new.name}" + (f"{m[2]}{new.branch}" if m[2] else ""), text)
    pages = old.pages.rstrip("/")
    others = "" if pages.count("/") > 2 else r"(?!/(?!book/)[\w.-]+/)"  # a site of the owner holds other sites too
    return re.sub(rf"{re.escape(pages)}(?![\w-]){others}", new.pages.rstrip("/"), text)


def changes(new: Repository, root: Path = ROOT) -> dict[Path, bytes]:
    """Return the files that would change, with their new content. Nothing is written."""
    old = configured(root)
    missing = [path for path in places(new) if not (root / path).exists()]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such file, and it must name the repository.")
    found = {}
    for path in files(root):
        before = path.read_bytes()
        after = rewritten(path.relative_to(root).as_posix(), before.decode("utf8"), old, new).encode("utf8")
        if after != before:
            found[path] = after
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", help=USAGE)
    parser.add_argument("--branch", help="the branch that readers see (the one that is set now)")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        new = parse(args.url, args.branch or configured(args.root).branch)
        changed = changes(new, args.root)
    except ValueError as error:
        sys.exit(f"nothing was changed: {error}")
    # _config.yml last: the old address is read from it, so that a run that was cut off can be run again
    for path, content in sorted(changed.items(), key=lambda item: item[0].name == "_config.yml"):
        path.write_bytes(content)
        print(f"changed {path.relative_to(args.root).as_posix()}")
    print(f"{len(changed)} files changed: the repository is {new.url}, branch {new.branch}.")
    if changed:
        print(f"the book will be served from {new.pages} once GitHub Pages is on (Settings, Pages, GitHub Actions).")


if __name__ == "__main__":
    main()
