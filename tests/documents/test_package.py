"""What says how the package is called, which version it is and who wrote it says the same."""

import datetime
import re
import tomllib

import pytest
import yaml

import documented
import vdm

SECTION = re.compile(r"^## (\d+\.\d+\.\d+) \((unreleased|\d{4}-\d\d-\d\d)\)$", re.MULTILINE)
CI = documented.ROOT / ".ci/run"
SECTIONS = SECTION.findall((documented.ROOT / "CHANGELOG.md").read_text())


def project():
    with (documented.ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def test_the_version_is_that_of_the_changelogs_first_section():
    (version, date), *released = SECTIONS
    assert vdm.__version__ == (f"{version}.dev0" if date == "unreleased" else version)
    dates = [datetime.date.fromisoformat(date) for _, date in released]
    assert dates == sorted(dates, reverse=True) and dates


def test_the_citation_is_of_the_last_dated_version():
    citation = yaml.safe_load((documented.ROOT / "CITATION.cff").read_text())
    version, date = next(section for section in SECTIONS if section[1] != "unreleased")
    assert (str(citation["version"]), str(citation["date-released"])) == (version, date)
    assert citation["authors"] == project()["authors"]
    assert citation["license"] == project()["license"]


def test_messages_name_the_distribution_and_extras_that_it_has():
    sources = "".join(path.read_text() for path in (documented.ROOT / "vdm").rglob("*.py"))
    named = re.findall(r"pip install '([^']*)'", sources)
    assert len(named) >= 2
    for name, extra in (re.fullmatch(r"([\w-]+)\[(\w+)\]", word).groups() for word in named):
        assert name == project()["name"]
        assert extra in project()["optional-dependencies"]


def check_targets(commands):
    targets = set(re.findall(r"^(\w+):", (documented.ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        program, *words = (word for word in command.split() if not word.startswith("--"))
        assert program == "make" and words and set(words) <= targets, command


def test_hooks_call_targets_that_the_makefile_has():
    hooks = yaml.safe_load((documented.ROOT / ".pre-commit-config.yaml").read_text())
    check_targets(hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"])


@pytest.mark.skipif(not CI.exists(), reason="an sdist is without .ci")
def test_continuous_integration_runs_every_lane():
    lines = re.findall(r"^(make .*?) </dev/null$", CI.read_text(), re.MULTILINE)
    check_targets(lines)
    assert {"check", "test", "notebooks", "docs", "package"} <= set(" ".join(lines).split())
