"""Pictures: that they are there, whole and of a sensible size; what is in them, test_reconstruction.py checks."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_curriculum.__main__ import main
from mae_curriculum.commands.plot import curve_of
from mae_curriculum.evaluation.reconstruction import Reconstruction
from mae_curriculum.report.figures import draw_reconstructions, drawable
from mae_curriculum.report.runs import read_runs
from mae_curriculum.run.folder import RunFolder
from tests.runs import command, equal, options, picture_folder, pictures, rows, stop_midway, torchrun, weights

ODD_NAMES = ["plain.jpg", "$x_$ 100% \\frac{", "two\nlines", "\udcff\udc80.png", "😀 文字.jpg", "x" * 300, "", "%s {0}"]


def made_up(count: int, *, channels: int = 3, size: tuple[int, int] = (16, 16)) -> Reconstruction:
    seen, completed = (torch.rand(count, channels, *size) * 1.4 - 0.2 for _ in range(2))
    return Reconstruction(seen, torch.rand(count, 1, *size) > 0.5, completed, "norm_pixels", 1, 4)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_picture_fits_a_screen(count: int, tmp_path: Path) -> None:
    draw_reconstructions(tmp_path / "new" / "a.png", made_up(count), ODD_NAMES[:count], title="$ \udcff\n")
    width, height = size_of(tmp_path / "new" / "a.png")
    assert 500 <= width <= 1800
    assert 900 <= height <= 1100
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_more_images_go_on_below(tmp_path: Path) -> None:
    draw_reconstructions(tmp_path / "a.png", made_up(9), [*ODD_NAMES, "last"], title="nine")
    width, height = size_of(tmp_path / "a.png")
    assert width <= 1800 <= height * 1.2


@pytest.mark.parametrize(("channels", "size"), [(1, (24, 24)), (2, (8, 32)), (5, (64, 16)), (3, (2, 2))])
def test_any_channels_and_shapes_can_be_drawn(channels: int, size: tuple[int, int], tmp_path: Path) -> None:
    draw_reconstructions(tmp_path / "a.png", made_up(2, channels=channels, size=size), ["a", "b"], title="shapes")
    assert max(size_of(tmp_path / "a.png")) < 2000


def test_a_picture_that_does_not_fit_on_the_disk_leaves_the_one_before(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("40k")
    (disk / "a.png").write_text("before")
    with pytest.raises(OSError, match="No space left"):
        draw_reconstructions(disk / "a.png", made_up(8), ODD_NAMES, title="full")
    assert [path.read_text() for path in disk.iterdir()] == ["before"]


def test_names_become_drawable() -> None:
    assert drawable("a\udcff\n😀.jpg") == "a\ufffd\ufffd😀.jpg"
    assert drawable("photograph_000123.jpg", max_letters=12) == "…_000123.jpg"


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that drew on its way; nobody may change it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", *options(run, tracking__pictures=3)]) == 0
    return run


def test_a_run_draws_after_each_stage_and_ends_with_the_same_bits(pictured: Path, finished: Path) -> None:
    found = RunFolder(pictured).pictures
    assert [path.name for path in found] == [f"step-{step:08d}.png" for step in (40, 54, 67)]
    assert {size_of(path) for path in found} == {size_of(found[0])}
    assert equal(weights(pictured), weights(finished))
    assert RunFolder(finished).pictures == []
    assert json.loads((pictured / "summary.json").read_text())["pictures_seconds"] > 0
    assert json.loads((finished / "summary.json").read_text())["pictures_seconds"] < 0.01


def test_a_stopped_run_continues_to_the_same_pictures_and_bits(pictured: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_midway(run, "pretrain", *options(run, tracking__pictures=3))
    assert main(["pretrain", *options(run, tracking__pictures=3)]) == 0
    assert equal(weights(run), weights(finished))
    both = [[path.read_bytes() for path in RunFolder(folder).pictures] for folder in (run, pictured)]
    assert both[0] == both[1]


def test_two_processes_draw_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = torchrun("pretrain", *options(run, tracking__pictures=2))
    assert done.returncode == 0, done.stderr
    assert "no picture" not in done.stderr
    assert len(RunFolder(run).pictures) == 3


def test_a_picture_that_cannot_be_drawn_ends_no_run(
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


def test_the_number_of_pictures_has_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *options(tmp_path / "run", tracking__pictures=65)]) == 2
    assert "tracking.pictures must be in 0..64, got 65" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Image files of several kinds, one with bytes in its name that are no text."""
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
    assert capsys.readouterr().out == f"{path}\n"
    size_of(path)
    assert RunFolder(run).pictures == []  # it is none of the run's own
    again = tmp_path / os.fsdecode(b"\xff.png")
    assert command("reconstruct", "--checkpoint", run, "--images", *photos, "--out", again).returncode == 0
    assert again.read_bytes() == path.read_bytes()
    assert main(["reconstruct", "--checkpoint", str(run), "--images", *photos, "--seed", "1", "--out", str(again)]) == 0
    assert again.read_bytes() != path.read_bytes()


def test_reconstruct_takes_checkpoints_of_others(
    finished: Path, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = str(tmp_path / "mae.pth")
    assert main(["export", "--checkpoint", str(finished), "--out", theirs, "--format", "mae"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct", "--checkpoint", theirs, "--heads", "3", "--images", *photos]) == 0
    size_of(tmp_path / "reconstruction.png")


def test_an_encoder_alone_is_refused(
    finished: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(tmp_path / "encoder.safetensors")
    assert main(["export", "--checkpoint", str(finished), "--out", encoder]) == 0
    capsys.readouterr()
    assert main(["reconstruct", "--checkpoint", encoder, "--images", *photos]) == 2
    assert capsys.readouterr().err == (
        f"error: reconstructions need a decoder, and {encoder} (export of this project) has none; give the run folder, "
        "or an export with --format mae or hf_mae\n"
    )


def test_files_that_cannot_be_shown_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("a text file")
    np.save(tmp_path / "five.npy", np.zeros((20, 20, 5), np.uint8))
    mistakes = {
        "text.png cannot be shown: not an image": ["text.png"],
        "five.npy cannot be shown: 5 channels, model.channels is 1": ["five.npy"],
        "none.png cannot be shown: [Errno 2] No such file": ["none.png"],
        "give 1 to 64 image files, got 65": ["text.png"] * 65,
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
    with_photos = size_of(Path(picture))
    recipe = ["--config", "configs/pretrain/vit_b16_in1k_efficienttrain.yaml", "--data.source", "nowhere"]
    assert main(["plan", *recipe, "--picture", picture]) == 0
    told = capsys.readouterr()
    assert "no photos in the picture: data.source: 'nowhere' is neither a folder" in told.err
    assert "speed-up 1.54x" in told.out
    assert size_of(Path(picture))[1] < with_photos[1]
    assert main(["plan", *options(), "--picture", "plan.pdf"]) == 2
    assert "picture: the file name must end in .png" in capsys.readouterr().err


def test_plot_draws_several_runs(finished: Path, pictured: Path, tmp_path: Path) -> None:
    assert main(["plot", str(finished), str(pictured), "--out", str(tmp_path / "loss.png")]) == 0
    assert size_of(tmp_path / "loss.png")[0] == 1440
    curve, summary = curve_of(*read_runs([finished])), json.loads((finished / "summary.json").read_text())
    assert (curve.images[-1], curve.flops[-1], curve.loss[-1]) == (
        summary["images"],
        summary["flops"],
        summary["loss"],
    )
    assert curve.train_seconds[-1] == pytest.approx(summary["train_seconds"], abs=0.1)
    # reports after 2, 7, ... 67 steps, and at each stage's end
    assert [curve.images[row] // 64 for row in curve.edges] == [40, 54]


def test_runs_without_losses_are_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path)]) == 2
    assert "a run's folder has a journal.jsonl" in capsys.readouterr().err
    run = tmp_path / "run"
    run.mkdir()
    start = json.dumps(rows(finished, "start")[0]) + "\n"
    (run / "journal.jsonl").write_text(start)
    assert main(["plot", str(run)]) == 2
    assert "has reported no loss yet" in capsys.readouterr().err
    assert main(["plot", "--runs", "[]"]) == 2
    assert "runs: give one or more run folders" in capsys.readouterr().err
    (run / "journal.jsonl").write_text(f'{start}{{"event": "step", "step": 1, "loss": 0.5, "flops": null}}\n')
    assert main(["plot", str(run)]) == 2
    assert "counted no FLOPs; plot takes runs of pretraining and fine-tuning" in capsys.readouterr().err
