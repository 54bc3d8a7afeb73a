"""Figures exist, are valid PNG files and have a sensible size; test_reconstruction.py checks their content."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_curriculum.__main__ import main
from mae_curriculum.evaluation.reconstruction import Reconstruction
from mae_curriculum.report.figures import draw_reconstructions, drawable, line_style
from mae_curriculum.report.runs import read_runs
from mae_curriculum.run.folder import RunFolder
from tests.runs import command, equal, options, picture_folder, pictures, rows, stop_midway, two_processes, weights

ODD_NAMES = ["plain.jpg", "$x_$ 100% \\frac{", "two\nlines", "\udcff\udc80.png", "😀 文字.jpg", "x" * 300, "", "%s {0}"]


def random_images(count: int, *, channels: int = 3, size: tuple[int, int] = (16, 16)) -> Reconstruction:
    seen, completed = (torch.rand(count, channels, *size) * 1.4 - 0.2 for _ in range(2))
    return Reconstruction(seen, torch.rand(count, 1, *size) > 0.5, seen, completed, "norm_pixels", 1, 4)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


@pytest.mark.parametrize("count", [1, 3, 8])
def test_figure_fits_on_a_screen(count: int, tmp_path: Path) -> None:
    draw_reconstructions(tmp_path / "new" / "a.png", random_images(count), ODD_NAMES[:count], title="$ \udcff\n")
    width, height = size_of(tmp_path / "new" / "a.png")
    assert 500 <= width <= 1800
    assert 900 <= height <= 1100
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_further_images_continue_below(tmp_path: Path) -> None:
    draw_reconstructions(tmp_path / "a.png", random_images(9), [*ODD_NAMES, "last"], title="nine")
    width, height = size_of(tmp_path / "a.png")
    assert width <= 1800 <= height * 1.2


@pytest.mark.parametrize(("channels", "size"), [(1, (24, 24)), (2, (8, 32)), (5, (64, 16)), (3, (2, 2))])
def test_any_channels_and_shape_can_be_drawn(channels: int, size: tuple[int, int], tmp_path: Path) -> None:
    draw_reconstructions(tmp_path / "a.png", random_images(2, channels=channels, size=size), ["a", "b"], title="shapes")
    assert max(size_of(tmp_path / "a.png")) < 2000


@pytest.mark.parametrize(("channels", "cells"), [(3, (28, 28)), (1, (2, 4)), (4, (7, 7))])
def test_a_hog_target_is_drawn_large_enough_to_see_strokes(
    channels: int, cells: tuple[int, int], tmp_path: Path
) -> None:
    images = random_images(2, channels=channels, size=(8 * cells[0], 8 * cells[1]))
    truth, completed = torch.rand(2, 2, channels, 9, *cells)
    images = replace(images, truth=truth, completed=completed, target="hog")
    draw_reconstructions(tmp_path / "a.png", images, ["a", "b"], title="hog")
    width, height = size_of(tmp_path / "a.png")
    assert width >= 2 * 12 * cells[1]
    assert height >= 4 * 12 * cells[0]
    assert max(width, height) < 2100


def test_full_disk_keeps_the_existing_figure(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk = small_disk("40k")
    (disk / "a.png").write_text("before")
    with pytest.raises(OSError, match="No space left"):
        draw_reconstructions(disk / "a.png", random_images(8), ODD_NAMES, title="full")
    assert [path.read_text() for path in disk.iterdir()] == ["before"]


def test_drawable_spells_out_unprintable_letters_and_keeps_the_end_of_long_names() -> None:
    assert drawable("a\udcff\n😀.jpg") == "a\\udcff\\n😀.jpg"
    assert drawable("photograph_000123.jpg", max_letters=12) == "…_000123.jpg"


@pytest.fixture(scope="module")
def run_with_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that drew pictures; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", *options(run, tracking__pictures=3)]) == 0
    return run


def test_run_draws_after_each_stage_without_changing_its_weights(run_with_pictures: Path, finished: Path) -> None:
    found = RunFolder(run_with_pictures).pictures
    assert [path.name for path in found] == [f"step-{step:08d}.png" for step in (40, 54, 67)]
    assert {size_of(path) for path in found} == {size_of(found[0])}
    assert equal(weights(run_with_pictures), weights(finished))
    assert RunFolder(finished).pictures == []
    assert json.loads((run_with_pictures / "summary.json").read_text())["pictures_seconds"] > 0
    assert json.loads((finished / "summary.json").read_text())["pictures_seconds"] < 0.01


def test_resumed_run_has_the_same_pictures_and_weights(run_with_pictures: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_midway(run, "pretrain", *options(run, tracking__pictures=3))
    assert main(["pretrain", *options(run, tracking__pictures=3)]) == 0
    assert equal(weights(run), weights(finished))
    both = [[path.read_bytes() for path in RunFolder(folder).pictures] for folder in (run, run_with_pictures)]
    assert both[0] == both[1]


def test_only_one_process_draws(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = two_processes("pretrain", *options(run, epochs=1, tracking__pictures=2))
    assert done.returncode == 0, done.stderr
    assert "no picture" not in done.stderr
    assert len(RunFolder(run).pictures) == 3


def test_run_continues_if_a_picture_cannot_be_drawn(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    stop_midway(run, "pretrain", *options(run))
    (run / "pictures").write_text("in the way")
    assert main(["pretrain", *options(run, tracking__pictures=2)]) == 0
    assert "warning: no picture of step 67: [Errno 17] File exists" in capsys.readouterr().err
    assert rows(run, "picture_failed")[-1]["steps_done"] == 67
    assert equal(weights(run), weights(finished))


def test_broken_images_are_left_out_of_pictures(tmp_path: Path) -> None:
    folder, run = picture_folder(tmp_path / "photos", classes=2, count=200), tmp_path / "run"
    (folder / "class0" / "0000.png").write_text("a text file")
    assert main(["pretrain", *options(run, tracking__pictures=2, **pictures(folder))]) == 0
    widths = [size_of(path)[0] for path in RunFolder(run).pictures]
    assert len(widths) == 3
    assert rows(run, "picture_failed") == []


def test_number_of_pictures_is_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *options(tmp_path / "run", tracking__pictures=65)]) == 2
    assert "tracking.pictures must be in 0..64, got 65" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Image files of several shapes, one with a name that is not UTF-8."""
    kinds = {"wide.jpg": (90, 40), "tall.png": (20, 70), "\udcff$.png": (32, 32)}
    for number, (name, size) in enumerate(kinds.items()):
        Image.new("RGB", size, (80 * number, 99, 10)).save(tmp_path / "aside.png")
        (tmp_path / "aside.png").rename(tmp_path / name)
    return [str(tmp_path / name) for name in kinds]


def test_reconstruct_draws_files_with_a_runs_model(
    finished: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert main(["reconstruct", "--checkpoint", str(run), "--images", *photos]) == 0
    path = run / "pictures" / "reconstruction.png"
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n"
    assert f"images: {len(photos)}, width x height of {len(photos)} of them: " in captured.err
    size_of(path)
    assert RunFolder(run).pictures == []  # not one of the pictures that the run drew
    again = tmp_path / os.fsdecode(b"\xff.png")
    assert command("reconstruct", "--checkpoint", run, "--images", *photos, "--out", again).returncode == 0
    assert again.read_bytes() == path.read_bytes()
    assert main(["reconstruct", "--checkpoint", str(run), "--images", *photos, "--seed", "1", "--out", str(again)]) == 0
    assert again.read_bytes() != path.read_bytes()


def test_reconstruct_takes_foreign_checkpoints(
    finished: Path, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = str(tmp_path / "mae.pth")
    assert main(["export", "--checkpoint", str(finished), "--out", theirs, "--format", "mae"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct", "--checkpoint", theirs, "--heads", "3", "--images", *photos]) == 0
    size_of(tmp_path / "reconstruction.png")


def test_encoder_without_decoder_is_refused(
    finished: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(tmp_path / "encoder.safetensors")
    assert main(["export", "--checkpoint", str(finished), "--out", encoder]) == 0
    capsys.readouterr()
    assert main(["reconstruct", "--checkpoint", encoder, "--images", *photos]) == 2
    assert capsys.readouterr().err == (
        f"error: {encoder} (export of this project) has no decoder; use the run, or export it with --format mae\n"
    )


def test_unreadable_images_are_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("a text file")
    np.save(tmp_path / "five.npy", np.zeros((20, 20, 5), np.uint8))
    mistakes = {
        "text.png cannot be read: not an image": ["text.png"],
        "five.npy cannot be read: 5 channels, model.channels is 1": ["five.npy"],
        "none.png cannot be read: [Errno 2] No such file": ["none.png"],
        "images must be 1 to 64 image files, got 65": ["text.png"] * 65,
    }
    for message, names in mistakes.items():
        images = [str(tmp_path / name) for name in names]
        assert main(["reconstruct", "--checkpoint", str(finished), "--images", *images]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    out = ["--images", str(tmp_path / "text.png"), "--out", "a.jpg"]
    assert main(["reconstruct", "--checkpoint", str(finished), *out]) == 2
    assert "out: the file name must end in .png, got a.jpg" in capsys.readouterr().err


def test_plan_draws_the_curriculum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tmp_path / "plan.png")
    assert main(["plan", *options(curriculum__augmentation__randaug="[0, 9]"), "--picture", picture]) == 0
    assert capsys.readouterr().err == ""
    with_images = size_of(Path(picture))
    recipe = ["--config", "configs/pretrain/vit_b16_in1k_efficienttrain.yaml", "--data.source", "nowhere"]
    assert main(["plan", *recipe, "--picture", picture]) == 0
    output = capsys.readouterr()
    assert "warning: the figure shows no images: data.source: 'nowhere' is neither a folder" in output.err
    assert "speed-up 1.54x" in output.out
    assert size_of(Path(picture))[1] < with_images[1]
    assert main(["plan", *options(), "--picture", "plan.pdf"]) == 2
    assert "picture: the file name must end in .png" in capsys.readouterr().err


def test_plot_draws_several_runs(finished: Path, run_with_pictures: Path, tmp_path: Path) -> None:
    assert main(["plot", str(finished), str(run_with_pictures), "--out", str(tmp_path / "loss.png")]) == 0
    assert size_of(tmp_path / "loss.png")[0] == 1440
    (run,), summary = read_runs([finished]), json.loads((finished / "summary.json").read_text())
    for key in ("images", "flops", "loss"):
        assert run.curves[key][-1] == summary[key]
    assert run.curves["train_seconds"][-1] == pytest.approx(summary["train_seconds"], abs=0.1)
    # logged after 2, 7, ... 67 steps, and at the end of each stage
    assert [stage.first_step for stage in run.stages[1:]] == [40, 54]
    assert {40, 54} <= set(run.curves["steps_done"])


def test_plot_needs_losses_and_flops(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path)]) == 2
    assert "a run's folder has a journal.jsonl" in capsys.readouterr().err
    run = tmp_path / "run"
    run.mkdir()
    start = json.dumps(rows(finished, "start")[0]) + "\n"
    (run / "journal.jsonl").write_text(start)
    assert main(["plot", str(run)]) == 2
    assert "has logged no loss yet" in capsys.readouterr().err
    assert main(["plot", "--runs", "[]"]) == 2
    assert "runs: got none; name one or more run folders" in capsys.readouterr().err
    (run / "journal.jsonl").write_text(
        f'{start}{{"event": "step", "time": 1, "steps_done": 1, "loss": 0.5, "flops": null}}\n'
    )
    assert main(["plot", str(run)]) == 2
    assert "has logged no FLOPs; plot takes runs of pretraining and fine-tuning" in capsys.readouterr().err


def test_more_lines_than_colors_have_styles_of_their_own() -> None:
    styles = [tuple(line_style(number).items()) for number in range(40)]
    assert len(set(styles)) == 40
    assert {line_style(number)["linestyle"] for number in range(10)} == {"solid"}
