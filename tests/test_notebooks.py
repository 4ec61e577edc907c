"""What every notebook of the book must keep to. nbval runs the notebooks; this reads them as they are stored."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
import torch
import yaml

from companion import players
from companion.players._base import source

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))["repository"]
REPOSITORY = CONFIG["url"] + ("" if CONFIG["branch"] == "main" else f"@{CONFIG['branch']}")
SETUP = f"""\
try:
    import companion  # noqa: F401
except ImportError:  # in Colab: torch and numpy stay as they are
    %pip install -q --no-deps "diffusion-companion @ git+{REPOSITORY}\""""
HIDDEN = {"remove-cell", "remove-input"}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def texts(cell):
    """Every text that a cell put out, pictures inside the text (data URIs) left out."""
    for output in cell.outputs:
        data = {"text": output.text} if output.output_type == "stream" else output.get("data", {})
        for kind, value in data.items():
            if kind.startswith("text"):
                yield re.sub(r"data:[^\"')\s]+", "", value)


def chapter_cells(notebook):
    """The visible code cells outside the hidden solutions."""
    inside = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            marks = re.findall(
                r"\{solution-(start|end)\}", cell.source
            )  # one cell may end a solution and start another
            inside = marks[-1] == "start" if marks else inside
        elif not inside and cell.cell_type == "code" and not tags(cell) & {"hide-input", *HIDDEN}:
            yield cell


# The rules. Each takes a notebook and yields a complaint for each thing that breaks it.


def set_up_first(notebook):
    first = code_cells(notebook)[0]
    if first.source.strip() != SETUP:
        yield f"the first code cell must be the set-up cell, exactly:\n{SETUP}"
    if tags(first) != {"remove-cell"}:
        yield "the set-up cell must have the tag remove-cell and no other"
    if first.outputs:
        yield "the set-up cell must be silent where the companion is installed"


def run_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"run it from top to bottom in a fresh kernel: the execution counts are {counts}"


def no_error_or_stderr(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"an error or a warning is stored: {str(output)[:200]}"


def pictures_described(notebook):
    for cell in code_cells(notebook):
        settings = cell.metadata.get("mystnb", {})
        pictures = [o for o in cell.outputs if any(k.startswith("image/") for k in o.get("data", {}))]
        if pictures and not settings.get("image", {}).get("alt", "").strip():
            yield f"no alt text (mystnb.image.alt) for the picture of: {cell.source[:60]!r}"
        if pictures and not settings.get("figure", {}).get("caption", "").strip():
            yield f"no caption (mystnb.figure.caption) for the picture of: {cell.source[:60]!r}"
        for text in texts(cell):
            if any("alt=" not in tag for tag in re.findall(r"<img\b[^>]*>", text)):
                yield f"an <img> without alt in the output of: {cell.source[:60]!r}"


def short_cells(notebook):
    for cell in code_cells(notebook):
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        limit = 40 if tags(cell) & {"hide-input", *HIDDEN} else 15
        if lines > limit:
            yield f"{lines} lines where {limit} are allowed: {cell.source[:60]!r}"


def right_number_of_cells(notebook):
    count = len(list(chapter_cells(notebook)))
    if not 12 <= count <= 25:
        yield f"{count} visible code cells outside the solutions, where 12 to 25 are meant"


def approximate_numbers_asserted(notebook):
    for cell in code_cells(notebook):
        if any("≈" in text for text in texts(cell)) and not re.search(r"^\s*assert\b", cell.source, re.MULTILINE):
            yield f"prints ≈, which nbval does not compare, and asserts nothing: {cell.source[:60]!r}"


def nothing_of_this_machine(notebook):
    pattern = r"\b0x[0-9a-f]{8,}|(?<![\w.)\]/])/(home|root|tmp|usr|Users|opt|var|mnt|content)/|\b[A-Z]:\\"
    for cell in code_cells(notebook):
        for text in texts(cell):
            if found := re.search(pattern, text):
                yield f"a path or an address in an output: {text[max(0, found.start() - 30) : found.end() + 30]!r}"


def every_output_compared(notebook):
    for cell in code_cells(notebook):
        if any(tag.startswith("nbval") for tag in tags(cell)) or re.search(r"#\s*NBVAL_", cell.source):
            yield f"nbval is told to look away: {cell.source[:60]!r}"
        if "raises-exception" in tags(cell):
            yield f"catch the error and print it: {cell.source[:60]!r}"


def no_dead_controls(notebook):
    if "widgets" in notebook.metadata:
        yield "widget state is stored: the page would load scripts from another host"
    for cell in code_cells(notebook):
        if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in cell.outputs):
            yield f"a widget is stored, which does nothing without a kernel: {cell.source[:60]!r}"


def players_up_to_date(notebook):
    for cell in code_cells(notebook):
        for figure in re.findall(r'<figure class="companion-player".*?</figure>', "".join(texts(cell)), re.DOTALL):
            script = source("live.js" if 'data-kind="live"' in figure else "player.js")
            if f"<script>{script}</script>" not in figure or f"<style>{source('player.css')}</style>" not in figure:
                yield "a stored player holds an old script or style: python scripts/notebook.py --players book/*.ipynb"


def fences_on_their_own_lines(notebook):
    """A fence at the end of a line of text closes nothing: what follows is drawn inside."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if "```" in line.lstrip().removeprefix("`").lstrip("`"):
                    yield f"a fence inside a line: {line[-60:]!r}"


RULES = [
    fences_on_their_own_lines,
    set_up_first,
    run_in_order,
    no_error_or_stderr,
    pictures_described,
    short_cells,
    right_number_of_cells,
    approximate_numbers_asserted,
    nothing_of_this_machine,
    every_output_compared,
    no_dead_controls,
    players_up_to_date,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rule(path, rule):
    assert not list(rule(nbformat.read(path, as_version=4)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_small_enough(path):
    assert path.stat().st_size < 1_500_000


def test_in_contents():
    listed = re.findall(r"file: (book/\d\d-[\w-]+)", (ROOT / "_toc.yml").read_text(encoding="utf8"))
    assert listed == [f"book/{path.stem}" for path in NOTEBOOKS]


# Each rule can fail: a sound notebook, and one way or more to break each rule.


def a_sound_notebook():
    setup = nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["remove-cell"]})
    picture = nbformat.v4.new_output("display_data", {"image/png": "AA==", "text/plain": "<Figure>"})
    figure = {"mystnb": {"image": {"alt": "a line"}, "figure": {"caption": "It rises."}}}
    cells = [setup, *(nbformat.v4.new_code_cell(f"print({i})") for i in range(12))]
    cells[1] = nbformat.v4.new_code_cell("plot()", metadata=figure, outputs=[picture])
    cells[2].source = "print('≈ 1.5')\nassert True"
    cells[2].outputs = [nbformat.v4.new_output("stream", text="≈ 1.5\n")]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    return nbformat.v4.new_notebook(cells=cells)


def stream(text, name="stdout"):
    return [nbformat.v4.new_output("stream", text=text, name=name)]


def html(text, kind="text/html"):
    return [nbformat.v4.new_output("display_data", {kind: text})]


BREAKS = [
    (fences_on_their_own_lines, lambda nb: nb.cells.append(nbformat.v4.new_markdown_cell("```{note}\nThis. ```"))),
    (set_up_first, lambda nb: nb.cells.pop(0)),
    (set_up_first, lambda nb: nb.cells[0].update(source=SETUP.replace("--no-deps", ""))),
    (set_up_first, lambda nb: nb.cells[0].metadata.pop("tags")),
    (set_up_first, lambda nb: nb.cells[0].update(outputs=stream("hello"))),
    (run_in_order, lambda nb: nb.cells[3].update(execution_count=40)),
    (run_in_order, lambda nb: nb.cells[3].update(execution_count=None)),
    (no_error_or_stderr, lambda nb: nb.cells[3].update(outputs=stream("careful", "stderr"))),
    (no_error_or_stderr, lambda nb: nb.cells[3].update(outputs=[nbformat.v4.new_output("error")])),
    (pictures_described, lambda nb: nb.cells[1].metadata["mystnb"].pop("image")),
    (pictures_described, lambda nb: nb.cells[1].metadata["mystnb"]["figure"].update(caption=" ")),
    (
        pictures_described,
        lambda nb: nb.cells[3].update(outputs=html("<img src='data:image/png;base64,AA=='>")),
    ),
    (short_cells, lambda nb: nb.cells[3].update(source="x = 1\n" * 16)),
    (short_cells, lambda nb: nb.cells[3].update(source="x = 1\n" * 41, metadata={"tags": ["hide-input"]})),
    (right_number_of_cells, lambda nb: nb.cells.pop(4)),
    (
        right_number_of_cells,
        lambda nb: nb.cells.extend(copy.deepcopy(nb.cells[3:]) + copy.deepcopy(nb.cells[3:])),
    ),
    (approximate_numbers_asserted, lambda nb: nb.cells[2].update(source="print('≈ 1.5')  # assert later")),
    (nothing_of_this_machine, lambda nb: nb.cells[3].update(outputs=stream("<f at 0x7f1234567890>"))),
    (nothing_of_this_machine, lambda nb: nb.cells[3].update(outputs=stream("saved /home/me/a.png"))),
    (every_output_compared, lambda nb: nb.cells[3].update(metadata={"tags": ["nbval-ignore-output"]})),
    (every_output_compared, lambda nb: nb.cells[3].update(source="# NBVAL_SKIP\nprint(3)")),
    (every_output_compared, lambda nb: nb.cells[3].update(metadata={"tags": ["raises-exception"]})),
    (no_dead_controls, lambda nb: nb.metadata.update(widgets={})),
    (
        no_dead_controls,
        lambda nb: nb.cells[3].update(outputs=html({}, "application/vnd.jupyter.widget-view+json")),
    ),
]


def old_player(notebook):
    player = players.trajectory(torch.zeros(2, 1, 2), label="points").html
    notebook.cells[4].outputs = html(player)
    assert not list(players_up_to_date(notebook))
    notebook.cells[4].outputs = html(player.replace("requestAnimationFrame", "").replace("const ", "let ", 1))


BREAKS.append((players_up_to_date, old_player))


def test_sound_notebook_passes():
    assert not [complaint for rule in RULES for complaint in rule(a_sound_notebook())]


def test_every_rule_is_broken_below():
    assert {rule for rule, _ in BREAKS} == set(RULES)


@pytest.mark.parametrize(("rule", "damage"), BREAKS)
def test_rule_can_fail(rule, damage):
    notebook = a_sound_notebook()
    damage(notebook)
    assert list(rule(notebook))


# The numbers that nbval does not compare (tests/nbval.cfg), and those it does.


def sanitize(text):
    config = (ROOT / "tests/nbval.cfg").read_text(encoding="utf8")
    for regex, replacement in re.findall(r"^regex: (.*)$\n^replace: (.*)$", config, re.MULTILINE):
        text = re.sub(regex, replacement, text)
    return text


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("loss ≈ 1.07", "loss ≈ 12.1"),
        ("≈ -3.1 nats", "≈ 4 nats"),
        ("≈ 0.112 ± 0.002, floor", "≈ 0.3 ± 0.01, floor"),
        ("≈ 97.2 %\n", "≈ 8 %\n"),
        ("≈ 1,234.5 and ≈ 2e-05", "≈ 7 and ≈ 3.1e+02"),
        ("a ≈  9.1  b", "a ≈ 10.1  b"),
        (
            '<figure class="companion-player">a\n</figure>\n<script>1</script>',
            '<figure class="companion-player">b</figure>',
        ),
    ],
)
def test_may_differ(stored, new):
    assert sanitize(stored) == sanitize(new)


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("loss = 1.07", "loss = 1.08"),
        ("≈ 1.07", "≈ nan"),
        ("≈ 1.07 of 20", "≈ 1.07 of 21"),
        ("≈ 3, 4", "≈ 3, 5"),
        ("≈ 97.2 %", "≈ 97.2"),
        ('<figure class="companion-player"></figure><p>1', '<figure class="companion-player"></figure><p>2'),
    ],
)
def test_may_not_differ(stored, new):
    assert sanitize(stored) != sanitize(new)
