from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from mae_curriculum.config import (
    ConfigError,
    as_yaml,
    config_fingerprint,
    differences,
    dump,
    exempt,
    load,
    load_each,
    load_file,
    read_yaml,
)
from mae_curriculum.pretraining_config import PretrainConfig
from slurm.submit import SubmitConfig


@dataclass(frozen=True)
class Stage:
    """A stage."""

    share: float
    """Its share."""
    size: int = 224
    """Its size."""


@dataclass(frozen=True)
class Part:
    """A part."""

    pace: Literal["images", "compute"] = "images"
    """Its pace."""
    stages: tuple[Stage, ...] = (Stage(1.0),)
    """Its stages."""
    ends: tuple[float, float] | None = None
    """Start and end."""

    def __post_init__(self) -> None:
        if sum(stage.share for stage in self.stages) != 1:
            raise ConfigError("part.stages: shares must sum to 1")


@dataclass(frozen=True)
class Config:
    """A config."""

    run: Path = exempt(Path("runs/x"))
    """Its folder."""
    part: Part = Part()
    """Its part."""
    epochs: int = 3
    """Its epochs."""
    rate: float = 1.0
    """Its rate."""
    quick: bool = False
    """Its flag."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_what_was_loaded_before_changes_nothing(folder: Path) -> None:
    file = write(folder / "a.yaml", "epochs: 7\npart: {pace: compute, ends: [0, 1]}\n")
    assert load(Config, [file, "--quick", "--rate", "2"]) == Config(
        part=Part("compute", ends=(0, 1)), epochs=7, quick=True, rate=2
    )
    with pytest.raises(ConfigError, match="epochs"):
        load(Config, ["--part.pace", "compute", "--epochs", "1.5"])
    assert load(Config, []) == Config()


def test_without_arguments_all_values_are_defaults() -> None:
    assert load(Config, []) == Config()


def test_later_files_override_only_their_own_keys(folder: Path) -> None:
    write(folder / "a.yaml", "epochs: 5\npart: {pace: compute, ends: [0, 9]}\n")
    write(folder / "b.yaml", "part: {ends: [1, 2]}\n")
    assert load(Config, ["--config", "a.yaml", "--config=b.yaml"]) == Config(
        epochs=5, part=Part(pace="compute", ends=(1.0, 2.0))
    )


def test_a_flag_overrides_a_later_file(folder: Path) -> None:
    write(folder / "a.yaml", "epochs: 5\n")
    assert load(Config, ["--epochs", "7", "--config", "a.yaml"]).epochs == 7


def test_a_part_may_be_a_path_relative_to_its_file(folder: Path) -> None:
    (folder / "parts").mkdir()
    write(folder / "parts" / "part.yaml", "stages: [{share: 0.5, size: 96}, {share: 0.5}]\n")
    write(folder / "parts" / "a.yaml", "part: part.yaml\n")
    expected = Part(stages=(Stage(0.5, 96), Stage(0.5)))
    assert load(Config, ["--config", "parts/a.yaml"]).part == expected
    assert load(Config, ["--part", "parts/part.yaml"]).part == expected
    assert load(Config, ["--config", "parts/a.yaml", "--part.ends", "[1, 2]"]).part == replace(
        expected, ends=(1.0, 2.0)
    )


def test_a_flag_overrides_a_later_file_of_its_part(folder: Path) -> None:
    part = write(folder / "part.yaml", "{pace: compute, ends: [1, 2]}")
    config = load(Config, ["--part.pace", "images", "--part", part])
    assert config == Config(part=Part(pace="images", ends=(1.0, 2.0)))


def test_a_flag_without_a_value_is_true() -> None:
    assert load(Config, ["--quick", "--epochs", "4"]) == Config(quick=True, epochs=4)
    assert not load(Config, ["--quick", "false"]).quick


def test_yaml_merge_keys_work(folder: Path) -> None:
    write(folder / "a.yaml", "part: &p {pace: compute, ends: [0, 1]}\nepochs: 4\n")
    write(folder / "b.yaml", "part: {<<: {pace: compute, ends: [0, 1]}, ends: [2, 3]}\n")
    assert load(Config, ["--config", "a.yaml", "--config", "b.yaml"]).part == Part(pace="compute", ends=(2.0, 3.0))


def test_a_number_may_have_an_exponent(folder: Path) -> None:
    assert load(Config, ["--config", write(folder / "a.yaml", "rate: 1e-3\n")]).rate == 0.001


MULTIPLYING = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join(8 * [f'*a{n - 1}'])}]\n" for n in range(1, 12))

ERRORS = {
    "epoch: 4": "'epoch' is not accepted; did you mean 'epochs'",
    "part: {paces: images}": "part.*paces.*did you mean 'part.pace'",
    "part: {stages: [{share: 1.0, sizes: 3}]}": "Option 'sizes' is not accepted; did you mean 'part.stages\\[\\].size'",
    "epochs: 1.5": "epochs: Expected a int. Got value: 1.5",
    "epochs: true": "epochs: Expected a int. Got value: True",
    "part: {stages: [{share: 1.0, size: 8.5}]}": "part.stages: size: Expected a int. Got value: 8.5",
    "part: {pace: fast}": "part.pace: Expected a Literal.*Got value: fast",
    "part: {ends: [1, 2, 3]}": r"part.ends: Expected one of tuple\[float, float\], NoneType. Got value: \[1, 2, 3\]",
    "part: {stages: [{share: 0.5}]}": "^part.stages: shares must sum to 1$",
    "epochs: 3\nepochs: 4": 'a.yaml: key "epochs" is repeated in line 2',
    "part: {stages: [{share: 1, size: 3, size: 4}]}": 'a.yaml: key "size" is repeated',
    "part: [": "a.yaml: while parsing",
    "epochs:": "epochs: needs a value, got null",
    "part: {pace: null}": "part.pace: needs a value, got null",
    "? [a, b]\n: 3": "a.yaml: while constructing a mapping",
    "rate: .nan": "rate: must be finite, got nan",
    "part: {ends: [0, .inf]}": r"part.ends: must be finite, got inf",
    "part: &p {again: *p}": "a.yaml: more than 100,000 items; do its anchors repeat or contain each other",
    MULTIPLYING: "a.yaml: more than 100,000 items",
    "- 3": r"a.yaml: a config file holds `key: value` lines; this one holds \[3\]",
}


@pytest.mark.parametrize("text", ERRORS)
def test_an_error_in_a_file_is_one_line_that_names_it(text: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=ERRORS[text]) as caught:
        load(Config, ["--config", write(folder / "a.yaml", text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epoch 4", "unrecognized arguments: --epoch 4; did you mean 'epochs'"),
        ("--part.pase images", "--part.pase images; did you mean 'part.pace'"),
        ("--pace images", "--pace images; did you mean 'part.pace'"),
        ("--epochs 1.5", "epochs: Expected a int. Got value: 1.5"),
        ("--epochs", "epochs"),
        ("--config none.yaml", "cannot read 'none.yaml'"),
        ("--part none.yaml", "part: cannot read 'none.yaml'"),
        ("--unheard 3", "--unheard 3; --help all lists the keys"),
    ],
)
def test_an_error_on_the_command_line_is_one_line_that_names_it(arguments: str, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(Config, arguments.split())
    assert "\n" not in str(caught.value)


def test_a_repeated_key_in_a_part_file_is_refused(folder: Path) -> None:
    write(folder / "part.yaml", "pace: images\npace: compute\n")
    with pytest.raises(ConfigError, match='part.yaml.*key "pace" is repeated'):
        load(Config, ["--part", "part.yaml"])


def test_dump_loads_to_an_equal_object(folder: Path) -> None:
    config = Config(Path("a b"), Part("compute", (Stage(0.25, 96), Stage(0.75)), (0.0, 9.0)), 7, 1e-7, True)
    (folder / "a.yaml").write_text(dump(config))
    assert load_file(Config, folder / "a.yaml") == config


@pytest.mark.parametrize(
    "text", ["1e-3", "0.1", "12", "null", "true", ".inf", "0x1", "1_000", "2020-01-01", "a: b", ""]
)
def test_text_that_looks_like_something_else_stays_text(text: str, folder: Path) -> None:
    write(folder / "text.yaml", as_yaml({"b": [text], "a": {"value": text}}))
    read = read_yaml((folder / "text.yaml").read_text())
    assert read == {"b": [text], "a": {"value": text}}
    assert list(read) == ["b", "a"]


def test_print_config_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(Config, ["--epochs", "9", "--print_config"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == dump(Config(epochs=9))


def test_print_config_checks_values() -> None:
    with pytest.raises(ConfigError, match="shares must sum to 1"):
        load(Config, ["--part.stages", '[{"share": 0.5}]', "--print_config"])


def test_help_shows_the_docstrings_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(Config, ["--help"])
    assert "Its epochs." in capsys.readouterr().out


def test_differences_name_keys_except_exempt_ones() -> None:
    other = Config(run=Path("elsewhere"), epochs=4, part=Part(ends=(0.0, 1.0)))
    assert differences(Config(), other) == ["part.ends: None -> [0.0, 1.0]", "epochs: 3 -> 4"]


def test_the_fingerprint_ignores_exempt_fields() -> None:
    assert (
        config_fingerprint(Config())
        == config_fingerprint(Config(run=Path("elsewhere")))
        != config_fingerprint(Config(epochs=4))
    )
    assert len(config_fingerprint(Config())) == 12


@dataclass(frozen=True)
class Listing:
    """A config with lists."""

    runs: tuple[Path, ...] = ()
    """Folders."""
    shots: tuple[float, ...] | None = None
    """Numbers."""
    quick: bool = False
    """A flag."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a b", "null", "--quick"], Listing((Path("a b"), Path("null")), quick=True)),
        (["--shots", "1", "-0.5"], Listing(shots=(1.0, -0.5))),
        (["--shots", "[1, 5]"], Listing(shots=(1.0, 5.0))),
        (["--quick", "--runs", "a"], Listing((Path("a"),), quick=True)),
        (["--shots", "null", "--quick"], Listing(quick=True)),
        (["--quick", "a", "--runs", "b", "--runs=c"], Listing((Path("a"), Path("b"), Path("c")), quick=True)),
        (["--quick", "false", "--runs", "[x and y"], Listing((Path("[x and y"),))),
        (["--runs", "😀: 'é'", "\udcff", "1e-3"], Listing((Path("😀: 'é'"), Path("\udcff"), Path("1e-3")))),
    ],
)
def test_list_flags_take_several_words_and_loose_words_are_runs(words: list[str], expected: Listing) -> None:
    assert load(Listing, words) == expected


def test_a_word_without_a_flag_is_a_file(folder: Path) -> None:
    assert load(Config, [write(folder / "a.yaml", "epochs: 7"), "--rate", "2"]) == Config(epochs=7, rate=2.0)
    with pytest.raises(ConfigError, match=r"cannot read 'epochs'"):
        load(Config, ["epochs", "7"])


def test_each_word_without_a_flag_is_a_config_of_its_own_with_all_flags(folder: Path) -> None:
    words = [write(Path(name), f"epochs: {epochs}\nrate: 5") for name, epochs in (("a.yaml", 7), ("b.yaml", 8))]
    apart = load_each(Config, ["--quick", *words, "--rate", "2", "--part.ends=[0, 1]"], prog="x")
    ends = Part(ends=(0.0, 1.0))
    expected = [Config(part=ends, epochs=epochs, rate=2.0, quick=True) for epochs in (7, 8)]
    assert apart == dict(zip(words, expected, strict=True))
    assert load_each(Config, words[1:], prog="x") == {"b.yaml": Config(epochs=8, rate=5.0)}
    assert load_each(Config, ["--epochs", "2"], prog="x") == {"": Config(epochs=2)}


def test_an_inline_mapping_may_stand_for_a_part() -> None:
    assert load(Config, ["--part", "{pace: compute}"]).part == Part(pace="compute")


def test_a_missing_file_of_a_part_is_named_with_the_file_that_names_it(folder: Path) -> None:
    write(folder / "a.yaml", "part: none.yaml\n")
    with pytest.raises(ConfigError, match=r"^a.yaml: part: cannot read 'none.yaml'"):
        load(Config, ["--config", "a.yaml"])


@dataclass(frozen=True)
class Source:
    """Where something comes from."""

    source: str = "digits"
    """Its name."""


@dataclass(frozen=True)
class Verb:
    """A command on a checkpoint."""

    run: Path = Path("runs/x")
    """Its folder."""
    checkpoint: Path | None = None
    """Its checkpoint."""
    data: Source = Source()
    """Its data."""
    mask_ratio: float = 0.75
    """Its ratio."""
    precision: str = "auto"
    """Its precision."""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--mask-ratio 0.5", "--mask-ratio 0.5; did you mean 'mask_ratio'?"),
        (
            "--device cuda",
            "--device cuda; a GPU is used if there is one; CUDA_VISIBLE_DEVICES chooses it, and torchrun",
        ),
        ("--resume a", "--resume a; the same command resumes its run"),
        ("--fp16", "--fp16; did you mean 'precision'?"),
        ("--data_path a", "--data_path a; did you mean 'data.source'?"),
        ("--output_dir a", "--output_dir a; did you mean 'run'?"),
        ("--data folder", "data: cannot read 'folder': Is a directory; did you mean --data.source folder?"),
        ("folder", "--config: cannot read 'folder': Is a directory; did you mean --checkpoint folder?"),
        (
            "weights.pt",
            "--config: cannot read 'weights.pt': it is not a text file; did you mean --checkpoint weights.pt?",
        ),
        ("-lr 3", "--config: cannot read '-lr': No such file or directory; flags begin with two dashes: --lr"),
    ],
)
def test_a_flag_of_other_programs_or_a_misplaced_word_leads_on(arguments: str, hint: str, folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "weights.pt").write_bytes(b"\x80\x02")
    with pytest.raises(ConfigError) as caught:
        load(Verb, arguments.split())
    assert hint in str(caught.value)


def test_a_recipe_of_a_part_names_the_flag_that_takes_it() -> None:
    with pytest.raises(ConfigError, match="did you mean --curriculum efficienttrain"):
        load(PretrainConfig, ["--config", "efficienttrain"])
    assert len(load(PretrainConfig, ["--curriculum", "efficienttrain"]).curriculum.stages) == 3


def test_a_name_given_as_a_part_leads_to_its_key() -> None:
    with pytest.raises(ConfigError, match=r"did you mean --model.name vit_base_patch16_224\?"):
        load(PretrainConfig, ["--model", "vit_base_patch16_224"])


def test_the_words_to_submit_come_after_two_dashes() -> None:
    with pytest.raises(ConfigError, match="the command to submit comes after `--`"):
        load(SubmitConfig, ["mae_curriculum", "pretrain"])
