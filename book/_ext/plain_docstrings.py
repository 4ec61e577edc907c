"""Lets docstrings be plain text: a star in (B, *D) or a bar in |x| is itself, and no reStructuredText markup."""

import re


def keep_stars_and_bars(app, what, name, obj, options, lines):
    """Escape the characters of markup outside backquotes and examples, before napoleon reads the sections."""
    if what in ("attribute", "property", "data") and lines:
        lines[0] = ": " + lines[0]  # else napoleon takes the text before a colon for a type
    example = False
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            lines[i] = re.sub(r"(`[^`]*`)|([*|])", lambda match: match[1] or "\\" + match[2], line)


def setup(app):
    app.connect("autodoc-process-docstring", keep_stars_and_bars, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
