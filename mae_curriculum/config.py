"""Load frozen dataclasses from YAML files and command-line flags; the only module that imports jsonargparse.

Each part of the program defines the dataclass of its own settings and checks their values in `__post_init__`. This
module loads such a class, writes it as YAML, and compares two of them.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_loader

from mae_curriculum.config_help import format_help
from mae_curriculum.config_messages import one_line, other_flag
from mae_curriculum.recipes import find_file

C = TypeVar("C")


class ConfigError(ValueError):
    """A user error: one line with what was given, what is allowed, and what to do."""


def exempt(default: Any) -> Any:
    """Mark a dataclass field that cannot change a run's results, so that a resumed run may change it."""
    return field(default=default, metadata={"exempt": True})


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, and `1e-3` is a number (YAML 1.1 reads it as a string)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *other`, or a key that the loader itself refuses
            key = self.construct_object(key_node)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f'key "{key}" is repeated in line {line}')
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_UniqueKeyLoader` reads as the same values: the text `1e-3` in quotes."""


for _each in (_UniqueKeyLoader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


MAX_YAML_ITEMS = 100_000
"""Number of values in a YAML file above which it is refused."""


def read_yaml(stream: str | IO[str]) -> Any:
    """Parse YAML; raises yaml.YAMLError, also for a repeated key and for anchors that multiply its size."""
    tree = yaml.load(stream, Loader=_UniqueKeyLoader)
    waiting, size = [tree], 0
    while waiting:
        item, size = waiting.pop(), size + 1
        if size > MAX_YAML_ITEMS:
            raise yaml.YAMLError(f"more than {MAX_YAML_ITEMS:,} items; do its anchors repeat or contain each other?")
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return tree


def as_yaml(tree: Any, **style: Any) -> str:
    """Format dicts, lists and scalars as YAML that `read_yaml` reads as the same, in the same order."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, **style)
    return text


set_loader("yaml_unique", read_yaml, exceptions=(yaml.YAMLError,))


def load(config_class: type[C], arguments: Sequence[str], *, prog: str = "config") -> C:
    """Build `config_class` from command-line arguments.

    `--config FILE` may be repeated: later files win, and `--a.b value` wins over all files, in whatever order they are
    given. FILE is a path or the name of a recipe. A setting that is a dataclass may be a file too: `--part FILE`, or
    `part: FILE` in YAML, relative to the file that says so. `--flag` alone sets a boolean, and the flag of a list takes
    several words. Words without a flag are the config's `runs` if it has any, otherwise files. `--print_config` prints
    the resulting YAML and exits; `--help` describes the settings, `--help all` those of the parts too.

    Raises  ConfigError: one line that names the key.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(format_help(config_class, prog, full="all" in arguments))
        sys.exit(0)
    # jsonargparse's own --print_config would skip the checks of __post_init__
    flags = [argument for argument in arguments if argument != "--print_config"]
    config = _build(config_class, prog, lambda parser: parser.parse_args(_resolve(flags, config_class)))
    if "--print_config" in arguments:
        print(dump(config), end="")
        sys.exit(0)
    return config


def load_each(config_class: type[C], arguments: Sequence[str], *, prog: str) -> dict[str, C]:
    """Build `config_class` for each word without a flag as if it were the only one; returns the configs by word.

    Without such words there is one config, by the name "".
    """
    files, groups = _group(arguments, _flags(config_class))
    if len(files) < 2:
        return {"".join(files): load(config_class, arguments, prog=prog)}
    flags = []
    for flag, words in groups:
        flags += [f"{flag}={words[0]}", *words[1:]] if words else [flag]
    if "--print_config" in flags:
        raise ConfigError(f"--print_config: one file at a time, got {', '.join(files)}")
    return {file: load(config_class, [f"--config={file}", *flags], prog=prog) for file in files}


def load_file(config_class: type[C], path: Path) -> C:
    """Build `config_class` from one YAML file."""
    return load(config_class, [f"--config={path}"])


def load_part(config_class: type[C], tree: dict[str, Any]) -> C:
    """Build `config_class` from the dicts, lists and scalars that `plain` returns."""
    return _build(config_class, "config", lambda parser: parser.parse_object(tree))


def _build(config_class: type[C], prog: str, parse: Callable[[ArgumentParser], Any]) -> C:
    kind: type[Any] = config_class
    parser = _parser(kind, prog)
    try:
        namespace = parse(parser)
        _refuse_nulls(namespace, config_class)
        values = parser.instantiate(namespace)
        config = config_class(**{f.name: values[f.name] for f in fields(config_class)})  # type: ignore[arg-type]
        _refuse_infinite(plain(config))
        return config
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError and ValueError for user errors
        raise ConfigError(one_line(str(error), [key for key, _ in _keys(config_class)])) from error


@cache  # building one takes a third of the time of `load`
def _parser(config_class: type[Any], prog: str) -> ArgumentParser:
    """Return the parser of a config class."""
    parser = ArgumentParser(
        prog=prog, description=config_class.__doc__, exit_on_error=False, parser_mode="yaml_unique", allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file or recipe; can be repeated, later ones win.")
    parser.add_class_arguments(config_class, None, sub_configs=True)
    return parser


def dump(config: Any) -> str:
    """Format a config as YAML that loads to an equal object."""
    return as_yaml(plain(config), default_flow_style=None, width=100, allow_unicode=True)


def config_fingerprint(config: Any) -> str:
    """Return 12 hexadecimal digits that identify a config; exempt fields do not count."""
    text = json.dumps(plain(config, with_exempt=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: Any, new: Any) -> list[str]:
    """List the keys in which two configs differ, as `a.b: old -> new`; exempt fields do not count."""
    before = dict(leaves(plain(old, with_exempt=False)))
    after = dict(leaves(plain(new, with_exempt=False)))
    absent = object()  # None is a value
    changed = [key for key in before | after if before.get(key, absent) != after.get(key, absent)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]


def plain(value: Any, *, with_exempt: bool = True) -> Any:
    """Convert a config to dicts, lists and scalars."""
    if is_dataclass(value):
        kept = [f.name for f in fields(value) if with_exempt or not f.metadata.get("exempt")]
        return {name: plain(getattr(value, name), with_exempt=with_exempt) for name in kept}
    if isinstance(value, list | tuple):
        return [plain(item, with_exempt=with_exempt) for item in value]
    return str(value) if isinstance(value, Path) else value


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values at the ends of nested dicts with their dotted keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config class with its type; keys of list items, which have no flag, contain []."""
    for f in fields(kind):
        yield prefix + f.name, f.type
        if is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")
        for item in filter(is_dataclass, get_args(f.type)):
            yield from _keys(item, f"{prefix}{f.name}[].")


def _refuse_nulls(namespace: Any, config_class: type) -> None:
    """Refuse null for a key that needs a value, such as an empty one in YAML: jsonargparse accepts it."""
    for key, kind in _keys(config_class):
        if namespace.get(key, ...) is None and type(None) not in get_args(kind):
            raise ConfigError(
                f"{key}: needs a value, got null (an empty one in YAML); leave the key out for its default"
            )


def _refuse_infinite(tree: Any, key: str = "") -> None:
    """Refuse .nan and .inf, which comparisons with a limit let pass."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            _refuse_infinite(value, f"{key}.{name}" if key else name)
    elif isinstance(tree, list):
        for item in tree:
            _refuse_infinite(item, key)
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"{key}: must be finite, got {tree}")


def _resolve(arguments: Sequence[str], config_class: type[Any]) -> list[str]:
    """Return the arguments as jsonargparse needs them: the contents of files first, then one value per flag.

    Files come first because jsonargparse lets a file overwrite the flags before it.
    """
    kinds = _flags(config_class)
    files: list[str] = []
    parts: list[str] = []
    values: list[str] = []
    lists: dict[str, list[str]] = {}
    loose, groups = _group(arguments, kinds)
    if loose:
        groups = [("--runs" if "--runs" in kinds else "--config", loose), *groups]
    for flag, words in groups:
        kind = kinds.get(flag)
        if flag == "--config" and words:
            files += [f"--config={as_yaml(_read_file(word, config_class, flag))}" for word in words]
        elif is_dataclass(kind) and words and not words[0].startswith("{"):
            tree = _read_file(words[0], kind, flag.removeprefix("--"))
            parts += [f"{flag}={as_yaml(tree)}", *words[1:]]
        elif kind is bool:
            values.append(f"{flag}={' '.join(words) or 'true'}")
        elif _item_type(kind) and words and not _is_yaml(words):
            lists.setdefault(flag, []).extend(words)
        else:
            values += [flag, *words]
    values += [f"{flag}={_as_yaml_list(words, _item_type(kinds[flag]))}" for flag, words in lists.items()]
    return files + parts + values


def _flags(config_class: type[Any]) -> dict[str, Any]:
    """Return the flags of a config class with their types."""
    return {f"--{key}": kind for key, kind in _keys(config_class)}


def _group(arguments: Sequence[str], kinds: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the words without a flag, and each flag with the words that belong to it."""
    loose: list[str] = []
    groups: list[tuple[str, list[str]]] = []
    for argument in arguments:
        flag, words = groups[-1] if groups else ("", loose)
        if argument.startswith("--") or argument == "-h":
            name, equals, value = argument.partition("=")
            groups.append((name, [value] if equals else []))
        elif kinds.get(flag) is bool and argument.lower() not in ("true", "false"):
            loose.append(argument)
        else:
            words.append(argument)
    return loose, groups


def _item_type(kind: Any) -> Any:
    """Return the type of the items of a tuple of any length, or of an optional one; None for any other type."""
    for option in (kind, *get_args(kind)):
        if get_origin(option) is tuple and get_args(option)[-1] is ...:
            return get_args(option)[0]
    return None


def _is_yaml(words: list[str]) -> bool:
    """Return whether the words of a list's flag are its value in YAML."""
    return words == ["null"] or (words[0].startswith("[") and words[0].endswith("]"))


def _as_yaml_list(words: list[str], item_type: Any) -> str:
    if item_type in (str, Path):  # quoted, whatever characters and bytes are in file names
        return as_yaml(words, default_style='"', default_flow_style=True, width=sys.maxsize).strip()
    return f"[{', '.join(words)}]"


def _read_file(name: str, config_class: Any, key: str, folder: Path = Path()) -> dict[str, Any]:
    """Read a YAML file of settings, and the files that it names for its parts.

    name    a path, relative to `folder`, or the name of a recipe.
    Raises  ConfigError for a file that is missing or that holds no mapping: jsonargparse would not name it.
    """
    path = find_file(name, config_class, folder)
    try:
        content = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        hint = other_flag(name, path, config_class, key)
        raise ConfigError(f"{key}: cannot read '{path}': {reason}" + (hint and f"; {hint}")) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config file holds `key: value` lines; this one holds {content!r}")
    for f in fields(config_class):
        value = content.get(f.name)
        if is_dataclass(f.type) and isinstance(value, str):
            content[f.name] = _read_file(value, f.type, f"{path}: {f.name}", path.parent)
    return content
