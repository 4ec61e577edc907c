"""Gives each page a description of its own, and what a link to it shows elsewhere: Open Graph and Twitter tags.

The description is the page's question and first sentences. `page_descriptions` in _config.yml overrides it, and serves
the pages that have no text of their own. A picture needs an absolute address: it is named once `html: baseurl` is set.
"""

import re
from html import escape
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from sphinx.util import logging

SHORTEST, LONGEST = 50, 160
PICTURE, PICTURE_SAYS = (
    "_static/social-preview.png",
    "The title of the book, its one equation, noise that becomes a spiral, and three pictures painted from prompts",
)
logger = logging.getLogger(__name__)


def description_of(doctree):
    """The first sentences that need no mathematics, 50 to 160 characters of them, or less where there are no more."""
    words = ""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if not isinstance(paragraph.parent, nodes.section) or text.startswith("Time "):  # "Time 45 minutes, and ..."
            continue
        formulas = [" ".join(formula.astext().split()) for formula in paragraph.findall(nodes.math)]
        for sentence in re.split(r"(?<=[.?!])(?<!Fig\.) ", text):
            about_a_figure = re.search(r"^Press |^Move |Fig\. ", sentence)
            if about_a_figure or sentence.endswith(":") or any(formula in sentence for formula in formulas):
                continue
            words = f"{words} {sentence}".strip()
            if len(words) >= SHORTEST:
                return words if len(words) <= LONGEST else words[: LONGEST - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"
    return words


def tags_of(app, pagename, title, description):
    """The tags of a page's head, as pairs of an attribute's text and a content."""
    tags = [
        ('name="description"', description),
        ('property="og:title"', title),
        ('property="og:description"', description),
        ('property="og:type"', "website" if pagename == app.config.root_doc else "article"),
        ('property="og:site_name"', escape(app.config.html_title)),
        ('name="theme-color" media="(prefers-color-scheme: light)"', "#ffffff"),
        ('name="theme-color" media="(prefers-color-scheme: dark)"', "#121212"),
    ]
    base = app.config.html_baseurl
    if not base:
        return [*tags, ('name="twitter:card"', "summary")]
    base = base.rstrip("/") + "/"
    return [
        *tags,
        ('property="og:url"', urljoin(base, app.builder.get_target_uri(pagename))),
        ('property="og:image"', urljoin(base, PICTURE)),
        ('property="og:image:alt"', PICTURE_SAYS),
        ('name="twitter:card"', "summary_large_image"),
    ]


def write_head(app, pagename, templatename, context, doctree):
    """Add the tags to one page."""
    description = app.config.page_descriptions.get(pagename) or (description_of(doctree) if doctree else "")
    if not SHORTEST <= len(description) <= LONGEST:
        logger.warning(
            f"{pagename}: its description has {len(description)} characters and should have {SHORTEST} to {LONGEST}. "
            f"Begin the page with a sentence about it, or name it in page_descriptions in _config.yml: {description!r}"
        )
    title = re.sub(r"<[^>]*>", "", context.get("title") or escape(app.config.html_title))  # it is HTML, escaped already
    pairs = tags_of(app, pagename, title, escape(description))
    context["metatags"] = context.get("metatags", "") + "".join(f'\n    <meta {k} content="{v}"/>' for k, v in pairs)
    static = "../" * pagename.count("/") + "_static"
    context["metatags"] += f'\n    <link rel="icon" href="{static}/favicon.svg" type="image/svg+xml"/>'
    context["metatags"] += f'\n    <link rel="apple-touch-icon" href="{static}/apple-touch-icon.png"/>'


def write_front_door(app, exception):
    """Send the bare address to the first page; Sphinx's table of contents writes a page without a title otherwise."""
    if exception or app.builder.format != "html":
        return
    first, title = app.builder.get_target_uri(app.config.root_doc), escape(app.config.html_title)
    tags = tags_of(app, app.config.root_doc, title, escape(app.config.page_descriptions.get(app.config.root_doc, "")))
    head = [f"<title>{title}</title>", f'<meta http-equiv="refresh" content="0; url={first}"/>']
    head += [f'<meta {name} content="{content}"/>' for name, content in tags]
    page = f'<!DOCTYPE html>\n<html lang="{app.config.language}">\n<head>\n<meta charset="utf-8"/>\n' + "\n".join(head)
    page += f'\n</head>\n<body><p><a href="{first}">{title}</a></p></body>\n</html>\n'
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app):
    app.add_config_value("page_descriptions", {}, "html", dict)
    app.connect("html-page-context", write_head)
    app.connect("build-finished", write_front_door, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
