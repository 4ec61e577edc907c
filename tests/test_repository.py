"""One place holds the repository's address; every other file agrees, and the launch buttons name files that exist."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import repository  # noqa: E402
from repository import Repository  # noqa: E402

HERE = repository.configured()
OTHER = Repository("Some-One", "a.book", "develop")
# Projects of others that our texts link to. A link to a new one: add it here.
FOREIGN = {"microsoft/fluentui-emoji", "zalandoresearch/fashion-mnist"}


def disagreements(root):
    """Every address in our text files that is neither that of _config.yml nor of a project in FOREIGN."""
    ours = repository.configured(root)
    for path in repository.files(root):
        text, name = path.read_text(encoding="utf8"), path.relative_to(root).as_posix()
        for owner, project in re.findall(r"github(?:usercontent)?(?:\.com)?/([A-Za-z0-9-]+)/([\w-]+(?:\.\w+)*)", text):
            project = project.removesuffix(".git")
            if f"{owner}/{project}" not in FOREIGN | {f"{ours.owner}/{ours.name}"}:
                yield f"{name} names github.com/{owner}/{project}"
        for page in re.findall(r"https?://[\w-]+\.github\.io(?:/[\w.-]*)?", text):
            if page.rstrip("/.") != ours.pages.rstrip("/"):
                yield f"{name} names {page}, and the book is at {ours.pages}"
    try:
        for path, content in repository.changes(ours, root).items():
            name = path.relative_to(root).as_posix()
            yield f"{name} must say {set(content.splitlines()) - set(path.read_bytes().splitlines())}"
    except ValueError as error:
        yield str(error)


def launched(root, address):
    """The file of the tree that a launch button's address opens."""
    ours = repository.configured(root)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))["launch_buttons"]["colab_url"]
    start = f"{config}/github/{ours.owner}/{ours.name}/blob/{ours.branch}/"
    assert address.startswith(start), f"{address} does not start with {start}"
    return root / address.removeprefix(start)


def addresses(root):
    """The address on each notebook's page, as the theme composes it."""
    launch = pytest.importorskip("sphinx_book_theme.header_buttons.launch")
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))
    listed = [page for part in yaml.safe_load((root / "_toc.yml").read_text())["parts"] for page in part["chapters"]]
    notebooks = [page["file"] for page in listed if (root / f"{page['file']}.ipynb").exists()]
    options = {
        "launch_buttons": config["launch_buttons"],
        "repository_branch": config["repository"]["branch"],
        "path_to_docs": config["repository"]["path_to_book"],
    }
    owner, name = config["repository"]["url"].split("/")[-2:]
    for page in notebooks:
        env = SimpleNamespace(
            doc2path=lambda page: str(root / f"{page}.ipynb"), metadata={page: {"kernelspec": {"name": "python3"}}}
        )
        config_of_app = {"html_theme_options": options}
        context = {"pagename": page, "sourcename": f"{page}.ipynb.txt", "header_buttons": []}
        context |= {"github_url": "https://github.com", "github_user": owner, "github_repo": name}
        launch.add_launch_buttons(SimpleNamespace(env=env, config=config_of_app), page, "page.html", context, None)
        (button,) = context["header_buttons"][0]["buttons"]
        yield button["url"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The text files of the tree, to copy."""
    folder = tmp_path_factory.mktemp("tree")
    for path in repository.files(ROOT):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb" and not re.match(r"0[15]-", path.name):
            continue  # two notebooks show it
        shutil.copyfile(path, copy)
    return folder


@pytest.fixture
def tree(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "tree"))


def run(tree, *words):
    command = [sys.executable, ROOT / "scripts/repository.py", *words, "--root", tree]
    return subprocess.run(command, capture_output=True, text=True)


def content(tree):
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_all_agree():
    assert not list(disagreements(ROOT))


def test_every_notebook_names_it_once():
    notebooks = sorted((ROOT / "book").glob("*.ipynb"))
    assert len(notebooks) >= 10
    for path in notebooks:
        assert [m[1] for m in repository.SETUP.findall(path.read_text(encoding="utf8"))] == [HERE.requirement]


def test_launch_buttons_name_files_that_exist():
    found = [launched(ROOT, address) for address in addresses(ROOT)]
    assert found == sorted((ROOT / "book").glob("*.ipynb"))


def test_launch_buttons_of_the_built_pages():
    pages = ROOT / "_build/html/book"
    if not pages.exists() or pages.stat().st_mtime < (ROOT / "_config.yml").stat().st_mtime:
        pytest.skip("no book was built since _config.yml changed: make book")
    for path in (ROOT / "book").glob("*.ipynb"):
        if (page := pages / f"{path.stem}.html").exists():
            (address,) = set(re.findall(r'href="(https://colab[^"]*)"', page.read_text(encoding="utf8")))
            assert launched(ROOT, address) == path


def test_a_wrong_folder_is_found(tree):
    config = tree / "_config.yml"
    config.write_text(config.read_text().replace('path_to_book: ""', 'path_to_book: "book"'))
    assert not any(launched(tree, address).exists() for address in addresses(tree))


@pytest.mark.parametrize("new", [OTHER, Repository("me", "my-book"), HERE])
def test_set_everywhere_and_back(tree, new):
    before = content(tree)
    done = run(tree, new.url + ".git/", "--branch", new.branch)
    assert done.returncode == 0, done.stderr
    after = content(tree)
    changed = {name for name in before if after[name] != before[name]}
    assert set(re.findall(r"^changed (.*)$", done.stdout, re.MULTILINE)) == changed
    assert repository.configured(tree) == new and not list(disagreements(tree))
    if new != HERE:
        assert {"_config.yml", "pyproject.toml", "CITATION.cff", "book/01-noise-addition.ipynb"} <= changed
    assert "0 files changed" in run(tree, new.url).stdout and content(tree) == after  # the branch is kept
    run(tree, HERE.url, "--branch", HERE.branch)
    assert content(tree) == before


def test_only_the_set_up_line_of_a_notebook_changes(tree):
    path = tree / "book/05-full-ddpm.ipynb"
    before = path.read_bytes().splitlines(keepends=True)
    run(tree, OTHER.url, "--branch", OTHER.branch)
    after = path.read_bytes().splitlines(keepends=True)
    assert len(before) == len(after)
    (line,) = [new for old, new in zip(before, after, strict=True) if old != new]
    assert json.loads(line) == f'    %pip install -q --no-deps "diffusion-companion @ git+{OTHER.url}@develop"'


def test_comments_and_the_end_of_a_file_stay(tree):
    path = tree / "_config.yml"
    path.write_bytes(path.read_bytes() + b"# the end, without a new line")
    before = path.read_text(encoding="utf8")
    run(tree, OTHER.url, "--branch", HERE.branch)
    base = '""' if HERE.owner == repository.PLACEHOLDER else f'"{HERE.pages}"'
    wanted = before.replace(HERE.url, OTHER.url).replace(f"baseurl: {base}", f'baseurl: "{OTHER.pages}"')
    assert path.read_text(encoding="utf8") == wanted


DAMAGE = [
    ("_config.yml", f"url: {HERE.url}", "url: https://github.com/other/place"),
    ("_config.yml", f"branch: {HERE.branch}", "branch: not-this-one"),
    ("_config.yml", "baseurl: ", "baseurl: https://other.github.io/ # "),
    ("pyproject.toml", f'"{HERE.url}"', '"https://github.com/other/place"'),
    ("pyproject.toml", f'"{HERE.pages}"', '"https://other.github.io/place/"'),
    ("CITATION.cff", HERE.url, "https://github.com/other/place"),
    ("CITATION.cff", "repository-code", "code"),
    ("book/01-noise-addition.ipynb", f"git+{HERE.url}", "git+https://github.com/other/place"),
    ("book/01-noise-addition.ipynb", f"git+{HERE.url}", f"git+{HERE.url}@not-this-one"),
    ("book/01-noise-addition.ipynb", "%pip install -q --no-deps", "%pip install -q"),
    ("README.md", "# ", "[read](https://github.com/other/place) # "),
    ("README.md", "# ", "[read](https://other.github.io/place) # "),
    ("README.md", "# ", f"[run](https://colab.research.google.com/github/other/{HERE.name}/blob/main/a) # "),
    (".github/workflows/book.yml", f"branches: [{HERE.branch}]", "branches: [not-this-one]"),
]


@pytest.mark.parametrize(("name", "old", "new"), DAMAGE)
def test_a_disagreement_is_found(tree, name, old, new):
    path = tree / name
    text = path.read_text(encoding="utf8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf8")
    assert list(disagreements(tree))


def test_links_anywhere_are_set(tree):
    added = (
        f"\n[a]({HERE.url}/blob/{HERE.branch}/README.md) [b]({HERE.url}.git) [c]({HERE.url}s) [d]({HERE.pages}a.html)."
    )
    path = tree / "README.md"
    path.write_text(path.read_text(encoding="utf8") + added, encoding="utf8")
    run(tree, OTHER.url, "--branch", OTHER.branch)
    a, b, c, d = re.findall(r"\]\((.*?)\)", path.read_text(encoding="utf8").splitlines()[-1])
    assert (a, b) == (f"{OTHER.url}/blob/develop/README.md", f"{OTHER.url}.git")
    assert (c, d) == (f"{HERE.url}s", f"{OTHER.pages}a.html")


@pytest.mark.parametrize(
    ("url", "branch", "message"),
    [
        ("", "main", "it must start with https://"),
        ("http://github.com/a/b", "main", "it must start with https://"),
        ("git@github.com:a/b.git", "main", "it must start with https://"),
        ("https://gitlab.com/a/b", "main", "host 'gitlab.com'; it must be github.com"),
        ("https://github.com/a", "main", "one owner and one repository"),
        ("https://github.com/a/b/tree/main", "main", "one owner and one repository"),
        ("https://github.com//b", "main", "one owner and one repository"),
        ("https://github.com/-a/b", "main", "the owner is '-a'"),
        ("https://github.com/a_b/c", "main", "the owner is 'a_b'"),
        (f"https://github.com/{'a' * 40}/b", "main", "up to 39 letters"),
        ("https://github.com/a/b c", "main", "called 'b c'"),
        ("https://github.com/a/..", "main", "called '..'"),
        ("https://github.com/a/b", "two words", "BRANCH is 'two words'"),
        ("https://github.com/a/b", "a..b", "BRANCH is 'a..b'"),
    ],
)
def test_a_wrong_address_is_refused(url, branch, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        repository.parse(url, branch)


def test_a_refusal_changes_nothing_and_shows_no_traceback(tree):
    before = content(tree)
    done = run(tree, "https://gitlab.com/a/b")
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("nothing was changed")
    (tree / "book/05-full-ddpm.ipynb").write_text("{}")
    done = run(tree, OTHER.url)
    assert done.returncode == 1 and "05-full-ddpm.ipynb has 0 set-up cells" in done.stderr
    (tree / "CITATION.cff").unlink()
    assert "CITATION.cff: no such file" in run(tree, OTHER.url).stderr
    (tree / "_config.yml").write_text("title: x\n")
    assert "must have the block `repository:`" in run(tree, OTHER.url).stderr
    assert set(content(tree)) == set(before) - {"CITATION.cff"}
    assert content(tree)["pyproject.toml"] == before["pyproject.toml"]


@pytest.mark.parametrize(
    ("url", "pages", "requirement"),
    [
        ("https://github.com/Me/my.book.git/", "https://me.github.io/my.book/", "https://github.com/Me/my.book"),
        ("https://github.com/me/Me.github.io", "https://me.github.io/", "https://github.com/me/Me.github.io"),
    ],
)
def test_what_follows_from_an_address(url, pages, requirement):
    found = repository.parse(url)
    assert (found.pages, found.requirement, found.url) == (pages, requirement, requirement)
