"""YAML files and command-line overrides become frozen dataclasses; the only module that knows jsonargparse.

A part of the program owns the dataclass that configures it. This module loads such a class, writes it back and
compares two of them; what a value means, and which values are allowed, the class itself says in `__post_init__`.
"""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

C = TypeVar("C")


class ConfigError(ValueError):
    """Something that the user can mend: one line with what was given, what is allowed, and what to do."""


def exempt(default: Any) -> Any:
    """Mark a dataclass field whose value cannot change a run's results, so that a continued run may change it."""
    return field(default=default, metadata={"exempt": True})


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and `1e-3` a number (YAML 1.1 takes it for a string)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *other`, or a key that the loader refuses by itself
            key = self.construct_object(key_node)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f'key "{key}" stands twice (again in line {line})')
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(stream: str | IO[str]) -> Any:
    """Parse YAML; raises yaml.YAMLError, for a key that stands twice too."""
    return yaml.load(stream, Loader=_UniqueKeyLoader)


set_loader("yaml_unique", read_yaml, exceptions=(yaml.YAMLError,))
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def load(config_class: type[C], arguments: Sequence[str], *, prog: str = "config") -> C:
    """Build `config_class` from command-line arguments.

    `--config FILE` may be repeated, a later file wins; `--a.b value` wins over every file, wherever it stands. Where
    a part is a dataclass, a path to a YAML file may stand for its mapping. A bare `--flag` sets a boolean field; the
    flag of a list takes several words. Words without a flag are the config's `runs` if it has any, else files as after
    `--config`. `--print_config` prints the result as YAML and exits.

    Raises  ConfigError, one line that names the key.
    """
    # jsonargparse's own --print_config would skip the checks of __post_init__
    asked = [argument for argument in arguments if argument != "--print_config"]
    config = _build(
        config_class,
        prog,
        lambda parser: parser.parse_args(_files_first(_spell_out(asked, config_class), config_class)),
    )
    if "--print_config" in arguments:
        print(dump(config), end="")
        sys.exit(0)
    return config


def load_file(config_class: type[C], path: Path) -> C:
    """Build `config_class` from one YAML file."""
    return load(config_class, ["--config", str(path)])


def load_part(config_class: type[C], tree: dict[str, Any]) -> C:
    """Build `config_class` from the dicts, lists and scalars that `plain` made of it."""
    return _build(config_class, "config", lambda parser: parser.parse_object(tree))


def _build(config_class: type[C], prog: str, parse: Callable[[ArgumentParser], Any]) -> C:
    parser = ArgumentParser(
        prog=prog, description=config_class.__doc__, exit_on_error=False, parser_mode="yaml_unique", allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file; may be repeated, later files win.")
    parser.add_class_arguments(config_class, None, sub_configs=True)
    try:
        namespace = parse(parser)
        _refuse_nulls(namespace, config_class)
        return config_class(**_fields_only(parser.instantiate(namespace), config_class))
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError and ValueError for a user's mistake
        raise ConfigError(_one_line(error, config_class)) from error


def dump(config: Any) -> str:
    """Write a config as YAML that loads again to an equal object."""
    return yaml.safe_dump(plain(config), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def config_fingerprint(config: Any) -> str:
    """Name a config by 12 hexadecimal digits; exempt fields do not count."""
    text = json.dumps(plain(config, with_exempt=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: Any, new: Any) -> list[str]:
    """List the keys in which two configs differ, as `a.b: old -> new`; exempt fields do not count."""
    before, after = dict(leaves(plain(old, with_exempt=False))), dict(leaves(plain(new, with_exempt=False)))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in before | after
        if before.get(key, ...) != after.get(key, ...)
    ]


def plain(value: Any, *, with_exempt: bool = True) -> Any:
    """Turn a config into dicts, lists and scalars."""
    if is_dataclass(value):
        return {
            f.name: plain(getattr(value, f.name), with_exempt=with_exempt)
            for f in fields(value)
            if with_exempt or not f.metadata.get("exempt")
        }
    if isinstance(value, list | tuple):
        return [plain(item, with_exempt=with_exempt) for item in value]
    return str(value) if isinstance(value, Path) else value


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands at the ends of nested dicts, by dotted key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config class with its type, those of the items of its lists too."""
    for f in fields(kind):
        yield prefix + f.name, f.type
        for part in (f.type, *get_args(f.type)):
            if is_dataclass(part):
                yield from _keys(part, f"{prefix}{f.name}.")


def _fields_only(namespace: Any, config_class: type) -> dict[str, Any]:
    return {f.name: namespace[f.name] for f in fields(config_class)}


def _refuse_nulls(namespace: Any, config_class: type) -> None:
    """Refuse null, such as an empty value in YAML, for a key that must have a value: jsonargparse lets it pass."""
    for key, kind in _keys(config_class):
        if namespace.get(key, ...) is None and type(None) not in get_args(kind):
            raise ConfigError(
                f"{key}: needs a value, got null (an empty one in YAML); leave the key out for its default"
            )


def _spell_out(arguments: Sequence[str], config_class: type[Any]) -> list[str]:
    """Spell the shorthands of `load` as jsonargparse wants them: each flag with its one value.

    A boolean flag may stand alone, the flag of a list takes words, also when it is repeated, and words without a flag
    are `runs` or files.
    """
    items = {
        f"--{key}": get_args(part)[0]
        for key, kind in _keys(config_class)
        for part in (kind, *get_args(kind))
        if get_origin(part) is tuple and get_args(part)[-1] is ...
    }
    booleans = {f"--{key}" for key, kind in _keys(config_class) if kind is bool}
    spelled: list[str] = []
    loose: list[str] = []
    lists: dict[str, list[str]] = {}
    for flag, words in _groups(arguments):
        name, equals, value = flag.partition("=")
        if name in items and equals:
            flag, words = name, [value, *words]
        if not flag:
            loose += words
        elif flag in booleans and (not words or words[0].lower() not in ("true", "false")):
            spelled.append(f"{flag}=true")
            loose += words
        elif flag in items and words and words != ["null"] and not _is_list(words[0]):
            lists.setdefault(flag, []).extend(words)
        else:
            spelled += [flag, *words]
    if loose and "--runs" in items:
        lists["--runs"] = [*loose, *lists.get("--runs", [])]
    elif loose:
        spelled = [*(f"--config={word}" for word in loose), *spelled]
    for flag, words in lists.items():
        text = _quote(words) if items[flag] in (str, Path) else f"[{', '.join(words)}]"
        spelled += [flag, text]
    return spelled


def _groups(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the words that follow it; those before the first flag with an empty one."""
    rest, flag = list(arguments), ""
    while rest or flag:
        words = list(takewhile(lambda word: not (word.startswith("--") or word == "-h"), rest))
        yield flag, words
        rest = rest[len(words) :]
        flag, rest = (rest[0], rest[1:]) if rest else ("", [])


def _quote(words: list[str]) -> str:
    """Spell words as a list of YAML, whatever letters and bytes of file names are in them."""
    return yaml.safe_dump(words, default_style='"', default_flow_style=True, width=sys.maxsize).strip()


def _is_list(word: str) -> bool:
    return word.startswith("[") and word.endswith("]")


def _files_first(arguments: list[str], config_class: type[Any]) -> list[str]:
    """Move `--config FILE`, then whole parts as `--part FILE`, to the front.

    jsonargparse lets a file overwrite the flags that stand before it.
    """
    files: list[str] = []
    parts: list[str] = []
    others: list[str] = []
    flags = {"--config": files} | {f"--{key}": parts for key, kind in _keys(config_class) if is_dataclass(kind)}
    remaining = iter(arguments)
    for argument in remaining:
        if argument in flags:
            flags[argument].append(f"{argument}={next(remaining, '')}")
        else:
            flags.get(argument.partition("=")[0], others).append(argument)
    for path in (Path(argument.removeprefix("--config=")) for argument in files):
        _check_yaml(path)
    return files + parts + others


def _check_yaml(path: Path) -> None:
    """Refuse a file that is missing or is no YAML; jsonargparse would not name it."""
    try:
        content = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: cannot read '{path}': {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config file holds `key: value` lines; this one holds {content!r}")


def _one_line(error: Exception, config_class: type) -> str:
    """Say a parser's complaint in one line, with the nearest key where one was misspelt."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.(Literal)", r"\1\2", str(error))
    text = re.sub(r"\s*Problem with given class_path '(?:\w+\.)*(\w+)':", "", text)
    text = re.sub(r'Parser key "([^"]*)":', r"\1:", text)
    text = re.sub(
        r"Does not validate against any of the Union subtypes\s+Subtypes: \[(.*)\]\s+Errors:.*Given value: ",
        r"Expected one of \1. Got value: ",
        text,
        flags=re.DOTALL,
    )
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()]
    message = " ".join(line if line.endswith(":") else f"{line};" for line in lines).rstrip(";")
    if misspelt := re.search(r"(?:arguments: --|option ')([\w.]+)", message, re.IGNORECASE):
        allowed = {name.rsplit(".", 1)[-1] for name, _ in _keys(config_class)}
        near = difflib.get_close_matches(misspelt[1].rsplit(".", 1)[-1], allowed, n=1)
        message += f"; did you mean '{near[0]}'?" if near else "; --help lists the keys"
    return message
