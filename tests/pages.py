"""Reading the pages of `vdm report`, by a parser that knows nothing of how they are made."""

import html.parser
import itertools
import re

VOID = {"meta", "link", "img", "br", "hr"}


class Reader(html.parser.HTMLParser):
    """Reads a page: its addresses, ids and nesting, and the cells of its tables by caption."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.ids, self.tags, self.cells, self.pictures = [], [], [], [], []
        self.text, self._open, self.headings = "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.addresses += re.findall(r"url\(([^)]*)\)", found.get("style", "") or "")
        self.addresses += [found["clip-path"][4:-1]] if "clip-path" in found else []
        self.ids += [found["id"]] if "id" in found else []
        self.pictures += [found] if tag == "img" else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        if self._open and self._open[-1] == "style":
            self.addresses += re.findall(r"url\(([^)]*)\)", data)
            assert "@import" not in data

    def rows(self, *start):
        """Return the rows that begin with these cells."""
        return [row for row in self.cells if tuple(row[: len(start)]) == start]


def assert_self_contained(page):
    assert page.addresses
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address
        assert not address.startswith("#") or address[1:] in page.ids, address
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(later - before <= 1 for before, later in itertools.pairwise(page.headings))
