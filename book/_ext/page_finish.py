"""What the theme and the other extensions leave undone on a finished page.

- Every image says its width and height, so that nothing jumps when it arrives, and all but a page's first are lazy.
- The theme draws icons by a script of 540 kB compressed, and also by a font. The font is enough: see custom.css.
- A formula is typeset once the page is shown: until then it takes about the room that it will need.
- The lines of a long signature are a list of definitions that define nothing.
- A bibliography is marked as a list whose entries are none, with a role that is given up.
- sphinx-exercise gives the text of every exercise the same id; an id must name one thing.
"""

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import imagesize
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)


def give_own_ids(app, doctree, docname):
    """Name the inner section of an exercise or a solution after the exercise."""
    for section in doctree.findall(nodes.section):
        if set(section["ids"]) & {"exercise-content", "solution-content"} and section.parent["ids"]:
            section["ids"] = [f"{section.parent['ids'][0]}-content"]


def complete(tag, page, first):
    """An image's tag with width, height and loading, where its author did not give them."""
    source = re.search(r'\ssrc="([^"]*)"', tag)
    if not source or re.match(r"\w+:", source[1]):  # data: and other hosts
        return tag
    added = "" if first or "loading=" in tag else ' loading="lazy"'
    if not re.search(r"\swidth=", tag):
        file = page.parent / unquote(unescape(source[1]).split("?")[0])
        width, height = imagesize.get(file) if file.exists() else (-1, -1)
        if width > 0:
            added += f' width="{width:.0f}" height="{height:.0f}"'
        else:
            logger.warning(
                "%s: the size of the image %s cannot be read; give :width: and :height:", page.name, source[1]
            )
    return f"<img{added}{tag[4:]}"


def reserve(match):
    """A formula in a line with about the number of characters it will show, so that custom.css keeps room for them."""
    shown = re.sub(r"\\[a-zA-Z]+", "x", unescape(match[1]))  # a command is mostly one sign
    signs = len(re.sub(r"[{}_^&\s]|\\.", "", shown))
    return match[0].replace(">", f' style="--signs: {signs}">', 1)


def plain_lines(match):
    """The parameters of a signature, each on a line of its own, without the marks of a list of definitions."""
    return (
        match[1] + '<div class="sig-lines">' + match[2].replace("<dd>", "<div>").replace("</dd>", "</div>") + "</div>"
    )


def finish(text, page):
    """The text of a finished page; finished text stays as it is."""
    first = text.find("<img", max(text.find('class="bd-article"'), 0))
    text = re.sub(r"<img\b[^>]*>", lambda match: complete(match[0], page, match.start() == first), text)
    text = re.sub(r'<span class="math notranslate nohighlight">\\\((.*?)\\\)</span>', reserve, text, flags=re.DOTALL)
    text = re.sub(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>', plain_lines, text, flags=re.DOTALL)
    text = text.replace(' role="list" class="citation-list"', ' class="citation-list"').replace(
        ' role="doc-biblioentry"', ""
    )
    return re.sub(r"<script [^>]*scripts/fontawesome\.js[^>]*></script>", "", text)


def finish_pages(app, exception):
    """Finish every page on the disk, those of an earlier build included."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if (finished := finish(text, page)) != text:
            page.write_text(finished, encoding="utf-8")


def setup(app):
    app.connect("doctree-resolved", give_own_ids)
    app.connect("build-finished", finish_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
