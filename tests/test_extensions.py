"""Tests of the book's own Sphinx extensions: the head of a page, its images and its ids."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from docutils import nodes

FOLDER = Path(__file__).parent.parent / "book" / "_ext"


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


head, finish = extension("page_head"), extension("page_finish")


def page(*paragraphs: str) -> nodes.document:
    """A page of paragraphs; the text between dollars is a formula."""
    from docutils.utils import new_document

    document, section = new_document("page"), nodes.section()
    document += section
    for text in paragraphs:
        paragraph = nodes.paragraph()
        for i, part in enumerate(text.split("$")):
            paragraph += nodes.math("", part) if i % 2 else nodes.Text(part)
        section += paragraph
    return document


QUESTION = "How do you turn data into pure noise, at a known rate?"


@pytest.mark.parametrize(
    ("paragraphs", "expected"),
    [
        ([QUESTION, "More."], QUESTION),
        (["How few?", "Time 45 minutes, and more.", "Press play. " + QUESTION], "How few? " + QUESTION),
        (["How few?", "The data are $x_0$ here. Fig. 3.1 shows this. " + QUESTION], "How few? " + QUESTION),
        (["One two, " * 30], "One two, " * 17 + "One…"),
        (["A colon ends this:"], ""),
        ([], ""),
    ],
)
def test_a_description_is_the_first_sentences_that_stand_alone(paragraphs: list[str], expected: str) -> None:
    description = head.description_of(page(*paragraphs))
    assert description == expected
    assert len(description) <= head.LONGEST


def test_a_paragraph_of_a_box_is_no_description() -> None:
    document = page("A box comes first, and this text stands after it on the page.")
    document[0].insert(
        0, nodes.note("", nodes.paragraph("", "This note is long enough to be taken for the first sentence."))
    )
    assert head.description_of(document).startswith("A box comes first")


def app_of(tmp_path: Path, base: str = "", **descriptions: str) -> SimpleNamespace:
    config = SimpleNamespace(
        root_doc="book/index", html_title="The book", html_baseurl=base, language="en", page_descriptions=descriptions
    )
    builder = SimpleNamespace(format="html", get_target_uri=lambda name: f"{name}.html")
    return SimpleNamespace(config=config, builder=builder, outdir=str(tmp_path))


def tags(app: SimpleNamespace, name: str, title: str = "A chapter", text: str = "") -> str:
    context = {"title": title}
    head.write_head(app, name, "page.html", context, page(text) if text else None)
    return context["metatags"]


SENTENCE = 'It says "noise & data" in a sentence that is long enough for a page.'


def test_the_head_of_a_page(tmp_path: Path) -> None:
    written = tags(app_of(tmp_path), "book/one", "A <em>chapter</em> &amp; more", SENTENCE)
    escaped = "It says &quot;noise &amp; data&quot; in a sentence that is long enough for a page."
    assert f'<meta name="description" content="{escaped}"/>' in written
    assert f'<meta property="og:description" content="{escaped}"/>' in written
    assert '<meta property="og:title" content="A chapter &amp; more"/>' in written
    assert '<meta property="og:type" content="article"/>' in written
    assert '<meta name="twitter:card" content="summary"/>' in written
    assert 'href="../_static/favicon.svg"' in written and "og:image" not in written and "og:url" not in written


@pytest.mark.parametrize("base", ["https://example.org/book", "https://example.org/book/"])
def test_an_absolute_address_brings_the_picture(tmp_path: Path, base: str) -> None:
    written = tags(app_of(tmp_path, base), "genindex", text=SENTENCE)
    assert '<meta property="og:url" content="https://example.org/book/genindex.html"/>' in written
    assert '<meta property="og:image" content="https://example.org/book/_static/social-preview.png"/>' in written
    assert '<meta name="twitter:card" content="summary_large_image"/>' in written
    assert 'href="_static/favicon.svg"' in written


def test_the_list_overrides_the_page(tmp_path: Path) -> None:
    listed = "What the list in the configuration says about this page, in one sentence."
    assert f'"description" content="{listed}"' in tags(
        app_of(tmp_path, **{"book/one": listed}), "book/one", text=SENTENCE
    )


@pytest.mark.parametrize("text", ["", "Too short."])
def test_a_page_without_a_description_is_a_warning(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(head.logger, "warning", warnings.append)
    tags(app_of(tmp_path), "book/one", text=text)
    (warning,) = warnings
    assert f"book/one: its description has {len(text)} characters and should have 50 to 160" in warning
    assert "page_descriptions in _config.yml" in warning


def test_the_bare_address_leads_to_the_first_page(tmp_path: Path) -> None:
    app = app_of(tmp_path, **{"book/index": SENTENCE})
    head.write_front_door(app, None)
    text = (tmp_path / "index.html").read_text()
    assert '<meta http-equiv="refresh" content="0; url=book/index.html"/>' in text
    assert "<title>The book</title>" in text and 'lang="en"' in text and '<meta name="description"' in text


PNG = (
    bytes.fromhex("89504e470d0a1a0a0000000d49484452")
    + (640).to_bytes(4)
    + (480).to_bytes(4)
    + bytes.fromhex("0806000000")
)


def finished(tmp_path: Path, html: str) -> str:
    (tmp_path / "a picture.png").write_bytes(PNG)
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"></svg>')
    return finish.finish(html, tmp_path / "page.html")


ARTICLE = '<img alt="logo" src="drawing.svg"><div class="bd-article">'


def test_images_get_their_size_and_all_but_the_first_are_lazy(tmp_path: Path) -> None:
    done = finished(tmp_path, ARTICLE + '<img alt="1" src="a%20picture.png"><img alt="2" src="drawing.svg?v=1"/>')
    logo, first, second = [f"<img{part.split('>')[0]}" for part in done.split("<img")[1:]]
    assert logo == '<img loading="lazy" width="30" height="20" alt="logo" src="drawing.svg"'
    assert first == '<img width="640" height="480" alt="1" src="a%20picture.png"'
    assert second == '<img loading="lazy" width="30" height="20" alt="2" src="drawing.svg?v=1"/'


def test_what_the_author_said_stays_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    sized = '<img width="9" height="9" loading="eager" src="a%20picture.png"><img src="data:x">'
    done = finished(tmp_path, ARTICLE + '<img src="a%20picture.png">' + sized)
    assert sized in done
    assert finished(tmp_path, done) == done


def test_an_image_without_a_size_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[tuple[object, ...]] = []
    monkeypatch.setattr(finish.logger, "warning", lambda *words: warnings.append(words))
    finished(tmp_path, ARTICLE + '<img src="gone.png">')
    ((message, *values),) = warnings
    assert (
        message % tuple(values) == "page.html: the size of the image gone.png cannot be read; give :width: and :height:"
    )


def test_the_script_of_icons_is_taken_out(tmp_path: Path) -> None:
    html = '<script defer src="../_static/scripts/fontawesome.js?digest=55"></script><script src="a.js"></script>'
    assert finished(tmp_path, html) == '<script src="a.js"></script>'


@pytest.mark.parametrize(
    ("formula", "signs"), [("x", 1), (r"\alpha(t)\,x_0", 6), (r"\bar{\alpha}_t &lt; 1", 5), ("a\n b", 2)]
)
def test_a_formula_in_a_line_says_how_long_it_is(tmp_path: Path, formula: str, signs: int) -> None:
    opening, rest = '<span class="math notranslate nohighlight"', rf">\({formula}\)</span>"
    done = finished(tmp_path, opening + rest)
    assert done == f'{opening} style="--signs: {signs}"{rest}'
    assert finished(tmp_path, done) == done


def test_a_long_signature_is_no_list_of_definitions(tmp_path: Path) -> None:
    opening, closing = '<dt><span class="sig-paren">(</span>\n', "\n)</dt><dl><dt>a</dt><dd>b</dd></dl>"
    done = finished(tmp_path, opening + "<dl>\n<dd>x, </dd>\n<dd>t</dd>\n</dl>" + closing)
    assert done == opening + '<div class="sig-lines">\n<div>x, </div>\n<div>t</div>\n</div>' + closing


def test_a_bibliography_is_no_list_without_entries(tmp_path: Path) -> None:
    html = '<div role="list" class="citation-list"><div class="citation" id="id2" role="doc-biblioentry">'
    assert finished(tmp_path, html) == '<div class="citation-list"><div class="citation" id="id2">'


def test_the_pages_on_the_disk_are_finished(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<img src="data:x"><img src="drawing.svg">')
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"></svg>')
    finish.finish_pages(app_of(tmp_path), None)
    assert 'width="30"' in (tmp_path / "page.html").read_text()


def test_an_exercise_has_its_own_id() -> None:
    boxes = [nodes.admonition("", nodes.section(ids=[f"{kind}-content"]), ids=[f"ex-{i}"]) for i, kind in
             enumerate(["exercise", "exercise", "solution"])]  # fmt: skip
    document = page()
    document += boxes
    document[0]["ids"] = ["other"]
    finish.give_own_ids(None, document, "page")
    assert [section["ids"] for section in document.findall(nodes.section)] == [
        ["other"], ["ex-0-content"], ["ex-1-content"], ["ex-2-content"]
    ]  # fmt: skip
