"""What a release must hold, what is said where a package is missing, and the scripts that try both from outside."""

import io
import pathlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import companion

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import colab  # noqa: E402
import release  # noqa: E402
import workshop  # noqa: E402

PACKAGE = release.package_files(ROOT)
WHEEL = {
    **PACKAGE,
    "diffusion_companion-1.dist-info/licenses/LICENSE": b"",
    "diffusion_companion-1.dist-info/METADATA": b"",
}
ARCHIVE = {**PACKAGE, **dict.fromkeys(["LICENSE", "README.md", "PKG-INFO", "pyproject.toml"], b"")}


def test_a_whole_release_passes():
    assert not release.complaints("wheel", WHEEL, PACKAGE)
    assert not release.complaints("source archive", ARCHIVE, PACKAGE)


@pytest.mark.parametrize("name", sorted(PACKAGE))
def test_a_missing_file_is_found(name):
    for kind, files in [("wheel", WHEEL), ("source archive", ARCHIVE)]:
        without = {key: value for key, value in files.items() if key != name}
        assert f"the {kind} lacks {name}" in release.complaints(kind, without, PACKAGE)


@pytest.mark.parametrize("what", release.KINDS)
def test_a_kind_that_the_tree_itself_lacks_is_found(what):
    kept = {name: content for name, content in PACKAGE.items() if not name.endswith(release.KINDS[what])}
    assert f"the wheel has no {what}" in release.complaints("wheel", kept, kept)


@pytest.mark.parametrize(
    ("kind", "more", "word"),
    [
        ("wheel", "tests/test_noise.py", "tests/test_noise.py, which is no part"),
        ("wheel", "book/01-noise-addition.ipynb", "book/01-noise-addition.ipynb, which is no part"),
        ("wheel", "companion/old.py", "companion/old.py, which the tree has not"),
        ("source archive", "tests/test_noise.py", "has tests/test_noise.py"),
        ("source archive", "book/01-noise-addition.ipynb", "has book/01-noise-addition.ipynb"),
        ("source archive", "companion/noise.py", "has another companion/noise.py"),
    ],
)
def test_a_wrong_file_is_found(kind, more, word):
    files = WHEEL if kind == "wheel" else ARCHIVE
    assert any(word in line for line in release.complaints(kind, {**files, more: b"changed"}, PACKAGE))


@pytest.mark.parametrize("name", ["LICENSE", "PKG-INFO", "pyproject.toml", "README.md"])
def test_an_archive_without_its_own_files_is_refused(name):
    assert any(
        name in line
        for line in release.complaints("source archive", {k: v for k, v in ARCHIVE.items() if k != name}, PACKAGE)
    )


def test_files_are_read_from_both_kinds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("companion/a.py", b"1")
    data = tarfile.TarInfo("name-1.0/companion/a.py")
    data.size = 1
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(data, io.BytesIO(b"1"))
    assert release.in_wheel(tmp_path / "a.whl") == release.in_archive(tmp_path / "a.tar.gz") == {"companion/a.py": b"1"}


def test_the_versions_agree(tmp_path):
    assert release.version(ROOT) == companion.__version__
    for name in ("pyproject.toml", "companion/__init__.py", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    path = tmp_path / "CITATION.cff"
    path.write_text(path.read_text().replace(f"version: {companion.__version__}", "version: 9.9"))
    with pytest.raises(workshop.Failed, match=r"'CITATION.cff': '9.9'"):
        release.version(tmp_path)


# A package that is not there. What `make release` sees in a clean environment, seen here by hiding the package.


@pytest.mark.parametrize(("code", "package"), release.NEEDS.items())
def test_a_missing_package_is_named(code, package, monkeypatch):
    names = {"scikit-learn": ["sklearn.datasets"], "pillow": ["PIL"], "scipy": ["scipy.optimize"]}
    for module in names.get(package, [package, f"{package}.torch"]):
        monkeypatch.setitem(sys.modules, module, None)
    companion.data._emoji._sheet.cache_clear()  # another test may have read the picture
    for module in [m for m in sys.modules if m == "companion.plots" and package == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.delattr(companion, "plots")
    with pytest.raises(ImportError, match=f": pip install {package}$"):
        eval(code, {"companion": companion, "torch": torch, "pathlib": pathlib})


def test_training_needs_no_progress_bar(monkeypatch):
    from companion import data, networks, predictions, schedules, training

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for module in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, module, None)
    batches = data.batches(torch.randn(8, 2), size=8)
    steps = training.fit(networks.MLP(2, width=8), batches, schedules.Cosine(), predictions.V, num_steps=2)
    assert [step.index for step in steps] == [1, 2]


# The tools that both scripts use.


def git(folder, *words):
    return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout


def test_a_snapshot_is_what_git_would_keep(tmp_path):
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for name in (".gitignore", "kept", "gone", "deep/new"):
        (tree / name).write_text("ignored\n")
    git(tmp_path, "init", "--quiet", "tree")
    git(tree, "add", "kept", "gone")
    (tree / "gone").unlink()
    (tree / "kept").write_text("changed")
    (tree / "ignored").write_text("")
    copy = workshop.snapshot(tmp_path / "copy", tree)
    assert {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()} == {
        ".gitignore",
        "kept",
        "deep/new",
    }
    assert (copy / "kept").read_text() == "changed"
    made = workshop.repository(copy, "develop")
    assert git(made, "branch", "--show-current").strip() == "develop" and "deep/new" in git(made, "ls-files")


def test_a_failed_command_says_how_it_ended():
    assert workshop.run(sys.executable, "-c", "print('well')").strip() == "well"
    with pytest.raises(workshop.Failed, match=r"ended with 3:\n(.*\n)*the end"):
        workshop.run(sys.executable, "-c", "print('the end'); raise SystemExit(3)")
    with pytest.raises(workshop.Failed, match="there is no program nonsense-x"):
        workshop.run("nonsense-x")


def test_nothing_of_this_environment_is_passed_on(monkeypatch):
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "MPLBACKEND"):
        monkeypatch.setenv(name, "x")
    found = workshop.clean_environment(EXTRA="1")
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "MPLBACKEND"} & set(found)
    assert found["PYTHONNOUSERSITE"] == found["EXTRA"] == "1"


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    commands = []

    def fake(*command, **_):
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir()
        return "Python 3.99"

    monkeypatch.setattr(workshop, "run", fake)
    for wanted in (["a==1"], ["a==1"], ["a==2"]):
        workshop.environment(tmp_path / "env", wanted, python="python")
    assert [command[-1] for command in commands if "install" in command] == ["a==1", "a==2"]


# Which chapters run, and with what.


def test_chapters_are_chosen_by_how_their_names_start():
    book = ROOT / "book"
    assert [path.stem for path in colab.chosen(["05", "01"], book)] == ["01-noise-addition", "05-full-ddpm"]
    assert len(colab.chosen([], book)) == len(list(book.glob("*.ipynb")))
    with pytest.raises(workshop.Failed, match="no chapter starts with '77'; there are: 01-noise-addition"):
        colab.chosen(["77"], book)


def test_the_list_of_versions():
    assert "torch==2.11.0" in colab.wanted() and "torch" in colab.wanted(newest=True)
    assert colab.python_version() == "3.13"


def test_another_interpreter_is_announced(monkeypatch, capsys):
    monkeypatch.setattr(colab.shutil, "which", lambda name: None)
    assert colab.interpreter("3.1") == sys.executable and "there is no python3.1 here" in capsys.readouterr().out
    assert colab.interpreter(f"3.{sys.version_info[1]}") == sys.executable and not capsys.readouterr().out


def notebook(folder, *sources):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    path = Path(folder, "a.ipynb")
    left = [nbformat.v4.new_output("error", ename="Left", evalue="over", traceback=[])]  # by an earlier run
    cells = [nbformat.v4.new_code_cell(source, outputs=left) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_notebook_runs_in_its_own_folder(tmp_path, capsys):
    said = "import os, warnings; warnings.warn('careful'); assert os.listdir() == ['a.ipynb']"
    colab.execute(notebook(tmp_path, said))
    assert capsys.readouterr().out.strip() == "passed; UserWarning: careful"


def test_a_failing_cell_is_named_and_the_outputs_are_kept(tmp_path):
    path = notebook(tmp_path, "print('first')", "raise ValueError('no')", "1")
    with pytest.raises(SystemExit, match=r"cell 1: ValueError: no"):
        colab.execute(path)
    assert "first" in path.read_text() and "Left" not in path.read_text()
