"""What stands at a field of the config is what is checked, what help says and what docs show."""

import argparse
import copy
import dataclasses
import importlib
import math
import pathlib
import re
import sys
import typing

import pytest

import runs
from vdm import dequantisation, laws, model, ode, samplers
from vdm.run import arguments, config as configs, overrides
from vdm.run.config import fields, rules
from vdm.run.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "docs/_ext"))
reference = importlib.import_module("reference")

BLOCKS = typing.get_type_hints(configs.Config)
FIELDS = {f"{n}.{f.name}": f for n, b in BLOCKS.items() if n != "seed" for f in fields.of(b)}
FIELDS["seed"] = next(field for field in fields.of(configs.Config))
COMMANDS = {
    "evaluate": configs.EvaluateConfig,
    "sample": configs.SampleConfig,
    "compress": configs.CompressConfig,
}
OPTIONS = [(command, field) for command, block in COMMANDS.items() for field in fields.of(block)]
WORDS = (rules.Word, rules.Words, rules.Name)
NUMERIC = [key for key, field in FIELDS.items() if field.kind in (int, float)]
COUNTS = [key for key, field in FIELDS.items() if isinstance(field.rule, rules.Counts)]
WORDY = [key for key, field in FIELDS.items() if isinstance(field.rule, WORDS)]
# Whatever data sets, files, the arrays in them and runs are called.
FREE = [
    "data.name",
    "data.path",
    "data.key",
    "data.label_key",
    "data.cond_key",
    "data.cond_field_key",
    "train.own_parts",
    "train.init_from",
]
# Around the words in a sentence.
GLUE = {"or", "both", "several", "comma", "separated"}


def words_of(key):
    rule = FIELDS[key].rule
    return list(rule.options if isinstance(rule, rules.Name) else rule.words)


EVERY_WORD = {word for key in WORDY for word in words_of(key)}


def with_value(key, value):
    """The config with one value changed, read as from a file."""
    values = copy.deepcopy(configs.to_dict(runs.points()))
    # Without them there is no best checkpoint, and no optimiser, to keep.
    values["train"] |= {"validation_examples": 1, "init_from": "runs/other"}
    *block, name = key.split(".")
    (values[block[0]] if block else values)[name] = value
    return configs.from_dict(values)


def takes(key, word):
    block = FIELDS[key].default is dataclasses.MISSING or not isinstance(FIELDS[key].default, str)
    try:
        with_value(key, {"name": word} if block else word)
    except UserError:
        return False
    return True


def refusal(key, value):
    with pytest.raises(UserError) as error:
        with_value(key, value)
    assert "\n" not in str(error.value)
    return str(error.value)


def bounds(rule):
    """The two bounds of a rule, whether or not they belong to it."""
    low = rule.above if rule.at_least is None else rule.at_least
    high = rule.below if rule.at_most is None else rule.at_most
    return low, high


def test_every_field_is_of_a_kind_that_is_tested_here():
    flags = [key for key, field in FIELDS.items() if field.kind is bool]
    assert sorted([*NUMERIC, *COUNTS, *WORDY, *FREE, *flags]) == sorted(FIELDS)
    assert all(len(field.says) > 5 for field in FIELDS.values())
    assert {field.rule is None for key, field in FIELDS.items() if key in flags} == {True}


@pytest.mark.parametrize("key", NUMERIC)
def test_a_number_has_two_bounds_and_what_is_beyond_is_named(key):
    field = FIELDS[key]
    low, high = bounds(field.rule)
    if field.kind is int:
        outside, inside = (low - 1, high + 1), (low, high)
        assert field.rule.at_least == low and field.rule.at_most == high
    else:
        near = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
        outside = (
            near[0] if field.rule.above is None else low,
            near[1] if field.rule.below is None else high,
        )
        inside = (math.nextafter(low, high), math.nextafter(high, low))
        for bad in (math.nan, math.inf):
            assert refusal(key, bad) == f"{key} must be finite: got {bad}"
    # Alone: of a whole config, steps_per_dispatch would have to divide the numbers of steps.
    for value in inside:
        fields.checked(field, value, key)
    for value, bound, name in zip(
        outside, (low, high), ("at least|above", "at most|below"), strict=True
    ):
        said = rf"{re.escape(key)} must be ({name}) {bound:,}: got {re.escape(f'{value:,}')}"
        assert re.fullmatch(said, refusal(key, value))
    assert key in refusal(key, 99999999999999)


@pytest.mark.parametrize("key", COUNTS)
def test_a_text_of_numbers_has_two_bounds(key):
    rule = FIELDS[key].rule
    assert with_value(key, f"{rule.at_most}") and with_value(key, f"{rule.at_least}")
    beyond = [str(rule.at_least - 1), str(rule.at_most + 1), "9" * 14, "9" * 5000, "-1", "1.5", ""]
    for word in beyond:
        text = refusal(key, word)
        assert text == f"{key} must be {rule}: got {word!r}"
        assert f"{rule.at_least:,} to {rule.at_most:,}" in text
    if rule.several:
        assert with_value(key, f"{rule.at_least}, {rule.at_most}")
        assert refusal(key, f"{rule.at_least},0").endswith("got '0'")
    else:
        assert refusal(key, "1,2").endswith("got '1,2'")
    assert takes(key, "inf") == rule.or_inf


def test_every_seed_has_one_rule():
    seeds = {key: field.rule for key, field in FIELDS.items() if key.endswith("seed")}
    assert len(seeds) == 4 and set(seeds.values()) == {rules.Number(0, 2**32 - 1)}


@pytest.mark.parametrize("key", WORDY)
def test_a_misspelt_word_is_refused_with_the_nearest(key):
    known = words_of(key)
    assert {word for word in EVERY_WORD if takes(key, word)} == set(known)
    word = max(known, key=len)
    wrong = {"name": word[:-1]} if FIELDS[key].kind not in (str,) else word[:-1]
    text = refusal(key, wrong)
    assert text.startswith(f"unknown {key} {word[:-1]!r}: expected one of ")
    assert text.endswith(f"Did you mean {word!r}?") and all(w in text for w in known)


@pytest.mark.parametrize(
    ("key", "constants"),
    [
        ("model.prediction", model.HEADS),
        ("sample.final", model.FINALS),
        ("sample.grid", samplers.grids.GRIDS),
        ("sample.sampler", {*samplers.SAMPLERS, "euler_maruyama", "exponential"}),
        ("objective.law", laws.LAWS),
        ("evaluate.law", {*laws.LAWS, "training"}),
        ("evaluate.divergence", ode.divergence.DIVERGENCES),
        ("evaluate.dequantisation", dequantisation.DEQUANTISATIONS),
    ],
)
def test_the_words_are_those_of_the_mathematics(key, constants):
    assert sorted(words_of(key)) == sorted(constants)


def help_of(command):
    """The help of a command's options, by option, each on one line."""
    whole = next(a for a in arguments.parser()._actions if a.dest == "==SUPPRESS==")
    chosen = whole.choices[command]
    chosen.formatter_class = lambda prog: argparse.HelpFormatter(prog, 4, 8, 10_000)
    pattern = r"^ +(--\w+).*\n +(\S.*)$"
    return dict(re.findall(pattern, chosen.format_help(), flags=re.MULTILINE))


def assert_says(text, key):
    """What stands in the help, or on the page, is what the check takes: no word more or less."""
    field = FIELDS[key]
    if key in WORDY:
        assert set(re.findall(r"\w+", text)) - GLUE == {w for w in EVERY_WORD if takes(key, w)}
    elif key in NUMERIC:
        assert all(f"{bound:,}" in text for bound in bounds(field.rule))
    elif key in COUNTS:
        assert f"{field.rule.at_least:,} to {field.rule.at_most:,}" in text
        assert ("inf" in text) == takes(key, "inf")


@pytest.mark.parametrize(
    ("command", "field"), OPTIONS, ids=lambda case: getattr(case, "name", case)
)
def test_help_and_check_agree(command, field):
    says, _, brackets = help_of(command)[f"--{field.flag}"].rpartition(" (")
    takes_text, _, default = brackets.removesuffix(")").rpartition("default ")
    assert says == field.says
    assert_says(takes_text.removesuffix("; "), f"{command}.{field.name}")
    value = {"on": True, "off": False}.get(default, default)
    assert field.kind(value) == field.default


@pytest.mark.parametrize("key", FIELDS)
def test_page_and_check_agree(key):
    page = reference.config_page()
    (row,) = re.findall(rf"^\| `{re.escape(key)}` \|(.*)\|$", page, flags=re.MULTILINE)
    kind, takes_text, default, says = map(str.strip, row.replace(r"\|", "∣").split("|"))
    assert kind == {"Mapping": "block"}.get(FIELDS[key].kind.__name__, FIELDS[key].kind.__name__)
    assert says.replace("∣", "|") == FIELDS[key].says
    assert (default == "*needed*") == (FIELDS[key].default is dataclasses.MISSING)
    assert_says(takes_text, key)


def test_every_option_of_every_command_has_its_help():
    commands = next(a for a in arguments.parser()._actions if a.dest == "==SUPPRESS==").choices
    for name, command in commands.items():
        for action in command._actions:
            assert action.help, (name, action.dest)


NUMBERS = [(command, field) for command, field in OPTIONS if field.kind in (int, float)]


@pytest.mark.parametrize(
    ("command", "field"), NUMBERS, ids=lambda case: getattr(case, "name", case)
)
def test_an_option_beyond_its_bounds_is_refused_by_its_own_name(command, field):
    low, _ = bounds(field.rule)
    words = {"compress": ["in", "out"]}.get(command, [])
    for value in (low - 1, 99999999999999):
        given = [command, "--workdir=any", *words, f"--{field.flag}={value}"]
        options = arguments.parser().parse_args(given)
        with pytest.raises(UserError, match=rf"^--{field.flag} must be .*: got -?[\d,.]+$"):
            overrides.override(COMMANDS[command](), options)


def test_an_option_takes_the_place_of_the_config():
    given = ["sample", "--workdir=any", "--steps=7", "--no-clip_denoised", "--guidance=3"]
    settings = configs.SampleConfig(num_steps=9, clip_denoised=True, grid="edm")
    wanted = configs.SampleConfig(num_steps=7, clip_denoised=False, guidance=3.0, grid="edm")
    assert overrides.override(settings, arguments.parser().parse_args(given)) == wanted
