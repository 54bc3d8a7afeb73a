"""The help of a command: its settings with their types, defaults and docstrings."""

import inspect
import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from docstring_parser import parse_from_object

from mae_curriculum.config_messages import MAIN_SETTINGS
from mae_curriculum.recipes import list_recipes

TYPE_NAMES = {int: "integer", float: "number", str: "string", Path: "path", bool: "true or false", dict: "mapping"}

MAX_COLUMNS = 100
"""Longer lines are hard to read."""

MAX_LINES = 80
"""Longer help is not read; what is left out is named."""

INDENT = 24
"""Column in which descriptions start, unless the flag is longer."""


@dataclass(frozen=True)
class Setting:
    """A setting of a command, or a part: a group of settings."""

    key: str
    """Dotted name; that of an item of a list, which has no flag, contains []."""
    kind: Any
    """Type; a dataclass for a part."""
    default: Any
    """MISSING for none."""
    description: str

    @property
    def name(self) -> str:
        """The key without the parts that it belongs to."""
        return self.key.rpartition(".")[2]

    @property
    def is_main(self) -> bool:
        """Whether most commands need this setting of a part."""
        return self.name in MAIN_SETTINGS or self.default is MISSING

    @cached_property
    def settings(self) -> "list[Setting]":
        """The settings of a part; none for any other setting."""
        return list_settings(self.kind, f"{self.key}.", self.default) if is_dataclass(self.kind) else []

    @property
    def entry(self) -> str:
        """The lines that describe it."""
        if self.settings:
            return format_entry(f"--{self.key} FILE", self.description + name_recipes(self.kind))
        flag = self.key if "[]" in self.key else f"--{self.key}"
        default = "required" if self.default is MISSING else f"default {spell(self.default)}"
        return format_entry(flag, f"{self.description} ({name_type(self.kind)}; {default})")

    @property
    def summary(self) -> str:
        """The lines that describe a part and name its settings."""
        names = ", ".join(f"{each.name}.*" if each.settings else each.name for each in self.settings)
        return format_entry(f"--{self.key}.*", f"{self.description}{name_recipes(self.kind)} Settings: {names}.")


def format_help(config_class: type, prog: str, *, full: bool) -> str:
    """Format a command's help: its own settings, then its parts, with all their settings if `full`."""
    settings = list_settings(config_class)
    words = "RUN..." if any(each.key == "runs" for each in settings) else "[FILE...]"
    recipes = name_recipes(config_class)
    head = [
        f"usage: {prog} {words} [--SETTING VALUE]",
        "",
        "\n\n".join(map(wrap, inspect.cleandoc(config_class.__doc__ or "").split("\n\n"))),
        "",
        format_entry("--config FILE", f"YAML file or recipe; can be repeated, later ones win.{recipes}"),
        format_entry("--print_config", "Print the resulting settings as YAML and exit."),
        "",
        "settings:",
    ]
    room = MAX_LINES - count_lines(head)
    return "\n".join([*head, *(describe(settings) if full else outline(settings, room))])


def outline(settings: Sequence[Setting], room: int) -> list[str]:
    """Describe settings and the main ones of parts; name the others, and the last ones for which there is no room."""
    described: list[Setting] = []
    parts = []
    for setting in settings:
        if setting.settings:
            parts.append(setting.summary)
            described += [each for each in setting.settings if each.is_main]
        else:
            described.append(setting)
    if parts:
        title = "parts; `--help all` describes their settings, `--PART FILE` reads one from a file:"
        parts = ["", title, *parts]
    named: list[Setting] = []
    while True:
        lines = [*(each.entry for each in described), *name_further(named), *parts]
        if count_lines(lines) <= room:
            return lines
        named.insert(0, described.pop())


def name_further(settings: Sequence[Setting]) -> list[str]:
    """Name settings that are not described."""
    if not settings:
        return []
    names = ", ".join(f"--{setting.key}" for setting in settings)
    return [wrap(f"{names}: see --help all", first="  ", others="  ")]


def count_lines(entries: Sequence[str]) -> int:
    """Return the number of lines of entries, each of several."""
    return sum(entry.count("\n") + 1 for entry in entries)


def describe(settings: Sequence[Setting]) -> list[str]:
    """Describe settings, the items of lists, then the settings of parts."""
    lines = []
    parts = []
    for setting in settings:
        if setting.settings:
            parts += ["", setting.entry, *describe(setting.settings)]
        else:
            lines.append(setting.entry)
            for item_class in filter(is_dataclass, get_args(setting.kind)):
                lines += [each.entry for each in list_settings(item_class, f"{setting.key}[].")]
    return lines + parts


def list_settings(config_class: Any, prefix: str = "", values: Any = MISSING) -> list[Setting]:
    """Return the settings of a class, those that it adds to its bases first.

    prefix  of their keys.
    values  an object with the defaults; MISSING for those of the class.
    """
    order: list[str] = []
    descriptions: dict[str, str] = {}
    bases: list[Any] = [base for base in config_class.__mro__ if is_dataclass(base)]
    for base in bases:
        order += inspect.get_annotations(base)
        own = {each.arg_name: " ".join(str(each.description).split()) for each in parse_from_object(base).params}
        descriptions = own | descriptions
    return [
        Setting(prefix + f.name, f.type, getattr(values, f.name, default_of(f)), descriptions[f.name])
        for f in sorted(fields(config_class), key=lambda f: order.index(f.name))
    ]


def default_of(f: Field[Any]) -> Any:
    """Return the default of a field; MISSING if it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def name_type(kind: Any) -> str:
    """Return a type in plain words; whether it may be null, its description says."""
    options = [option for option in get_args(kind) if option is not NoneType]
    if is_dataclass(kind):
        return f"{{{', '.join(f.name for f in fields(kind))}}}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(options)}" if len(options) > 1 else options[0]
    if get_origin(kind) is tuple and ... in options:
        item = name_type(options[0])
        return f"list of {item}s" if options[0] in TYPE_NAMES else f"list of {item.removeprefix('one of ')}"
    if get_origin(kind) is tuple:
        return f"[{', '.join(map(name_type, options))}]"
    if kind in TYPE_NAMES or get_origin(kind) is dict:
        return TYPE_NAMES[get_origin(kind) or kind]
    return " or ".join(map(name_type, options))


def spell(value: Any) -> str:
    """Return a default as YAML spells it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(spell, value))}]"
    if is_dataclass(value):
        return f"{{{', '.join(f'{f.name}: {spell(getattr(value, f.name))}' for f in fields(value))}}}"
    return str(value)


def name_recipes(config_class: type) -> str:
    """Return a sentence with the recipes for a class; nothing if there are none."""
    recipes = ", ".join(list_recipes(config_class))
    return f" Recipes: {recipes}." if recipes else ""


def format_entry(flag: str, text: str) -> str:
    """Format a flag and its description."""
    return wrap(text, first=f"  {flag}  ".ljust(INDENT), others=" " * INDENT)


def wrap(text: str, *, first: str = "", others: str = "") -> str:
    """Break text into lines that fit the terminal, with what the first and the others start with."""
    width = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )
