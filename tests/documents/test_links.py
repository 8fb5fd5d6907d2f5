"""Links lead somewhere: to a file that is there, to a heading that is there, in one spelling.

Addresses of the web are looked at, never visited: a test needs no network.
"""

import collections
import pathlib
import re
import subprocess
import urllib.parse

import pytest

import documented

ROOT = documented.ROOT
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
AUTOMATIC = re.compile(r"<(https?://[^>\s]+)>")
BARE = re.compile(r"(?<![(<\"\w])https?://[^\s)>`\"',]+")
PATH = re.compile(r"(?<![\w./-])(?:vdm|tests|experiments|benchmarks|notebooks|docs)/[\w./-]*\w/?")
# Written by `make docs` and the like, and not kept: a link may lead there, a file is not expected.
MADE = ("docs/notebooks/",)
MARKDOWN = [page for page in documented.pages() if page.endswith(".md")]


def kept():
    """The files that are kept in the repository, or, outside of one, all there are."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        return set(listed.stdout.splitlines())
    return {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}


KEPT = kept()
FOLDERS = {str(parent) for name in KEPT for parent in pathlib.PurePath(name).parents}


def text_of(page):
    """The prose of a document: no code, neither in blocks nor inline."""
    outside = [text for kind, text in documented.pieces(page) if kind == "text"]
    return re.sub(documented.INLINE, "`code`", "\n".join(outside))


def targets(page):
    text = text_of(page)
    return [*LINK.findall(text), *REFERENCE.findall(text), *AUTOMATIC.findall(text)]


def slugs(text):
    """The anchors that GitHub makes of the headings of a Markdown text, in their order."""
    outside = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    found, seen = [], collections.Counter()
    for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)? *$", outside, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", documented.pages())
def test_links_lead_to_files_and_headings(page):
    for target in targets(page):
        address = urllib.parse.urlsplit(target)
        if address.scheme:
            continue
        path = page
        if address.path:
            resolved = (ROOT / page).parent / urllib.parse.unquote(address.path)
            assert resolved.resolve().is_relative_to(ROOT.resolve()), f"{page}: {target}"
            path = str(resolved.resolve().relative_to(ROOT.resolve()))
            assert path in KEPT | FOLDERS or path.startswith(MADE), f"{page}: no {target}"
        if address.fragment and path.endswith(".md") and path not in made_in_part():
            assert address.fragment in slugs((ROOT / path).read_text()), f"{page}: no {target}"


def made_in_part():
    """Pages with headings that Sphinx makes: it checks the links to them itself."""
    return {page for page in MARKDOWN if re.search(r"```\{(?!toctree)", (ROOT / page).read_text())}


@pytest.mark.parametrize("page", documented.pages())
def test_paths_that_are_named_are_there(page):
    text = documented.prose(page)
    for match in re.finditer(PATH, re.sub(BARE, "", text)):
        name = match[0].rstrip("/.")
        if "." in pathlib.PurePath(name).name or match[0].endswith("/"):
            assert name in KEPT | FOLDERS or f"{name}/".startswith(MADE), f"{page}: no {match[0]}"


def test_the_readme_names_files_of_one_folder_after_the_first():
    (table,) = re.findall(
        r"^## Where to look\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        folder = pathlib.PurePath(names[0]).parent
        for name in names:
            here = str(pathlib.PurePath(name)), str(folder / name)
            assert set(here) & (KEPT | FOLDERS), f"no {name}"


def test_addresses_of_the_web_are_whole_safe_and_spelt_in_one_way():
    spellings = collections.defaultdict(set)
    for page in documented.pages():
        for found in {*targets(page), *re.findall(BARE, text_of(page))}:
            found = found.rstrip(".,;:")
            address = urllib.parse.urlsplit(found)
            if not address.scheme:
                continue
            assert address.scheme == "https", f"{page}: {found}"
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", address.netloc), f"{page}: {found}"
            spellings[normal(address)].add(found)
    assert len(spellings) > 1
    assert {key: found for key, found in spellings.items() if len(found) > 1} == {}


def normal(address):
    """What two spellings of one address have in common."""
    path = address.path.rstrip("/").removesuffix(".git").removesuffix(".pdf")
    if address.netloc.endswith("arxiv.org"):
        path = re.sub(r"^/(?:abs|pdf)/(.*?)(?:v\d+)?$", r"/\1", path)
    return (address.netloc.removeprefix("www."), path, address.query, address.fragment)


def test_slugs_are_those_of_github():
    # Its rule: lower case, punctuation left out, a hyphen for each space, repeats are numbered.
    text = "# One: two\n## `code` & *more*\n```\n# no heading\n```\n### One two\n## A [link](x)\n"
    assert slugs(text) == ["one-two", "code--more", "one-two-1", "a-link"]


@pytest.mark.parametrize("page", documented.pages())
def test_no_figure_is_left_open(page):
    assert "@@" not in (documented.ROOT / page).read_text()
