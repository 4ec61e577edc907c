"""Numbers a chapter by its file name: book/05-full-ddpm is chapter 5, whichever chapters stand before it.

Figures, equations and exercises follow (5.1, 5.2, ...). Once no chapter is missing this agrees with Sphinx's own count.
"""

import re

from docutils import nodes
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles as Collector

assign = Collector.assign_section_numbers


def number_by_file_name(self, env):
    """Let Sphinx number the sections, then replace the first part of each number."""
    before = env.toc_secnumbers
    assign(self, env)
    for docname, numbers in env.toc_secnumbers.items():
        if match := re.match(r"book/(\d\d)-", docname):
            chapter = int(match[1])
            env.toc_secnumbers[docname] = {anchor: (chapter, *n[1:]) for anchor, n in numbers.items() if n}
            env.titles[docname]["secnumber"] = [chapter]
            for reference in env.tocs[docname].findall(nodes.reference):
                reference["secnumber"] = [chapter, *reference["secnumber"][1:]]
    return [docname for docname, numbers in env.toc_secnumbers.items() if numbers != before.get(docname)]


def setup(app):
    Collector.assign_section_numbers = number_by_file_name
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
