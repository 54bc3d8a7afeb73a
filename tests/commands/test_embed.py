"""The file of an embedding: what it holds, that it is resumed and never mixed up, and what is refused."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mae_curriculum as mc
from mae_curriculum.__main__ import main
from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.lock import hold
from tests.processes import Process
from tests.runs import two_processes
from tests.small import SMALL

COUNTS = {"train/cat": 9, "train/dog": 8, "val/dog": 3}
COUNT = sum(COUNTS.values())


def write_run(folder: Path, *, seed: int) -> Path:
    run = RunFolder(folder)
    run.claim(mc.PretrainConfig(model=SMALL), command="pretrain")
    run.save({"steps_done": 7, "model": build_model(SMALL, seed=seed).state_dict()}, keep=1)
    return run.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", seed=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one color and noise each."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (36, 40, 3)) + generator.integers(0, 156, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def words(run: Path, photos: Path, out: Path, **settings: Any) -> list[str]:
    given = {"checkpoint": run, "data.source": photos, "out": out, "data.workers": 0, "batch_images": 2} | settings
    return ["embed", *(f"--{key}={value}" for key, value in given.items())]


def read(path: Path) -> dict[str, Any]:
    """Read a file as its card and README say: texts as lists, numbers as arrays."""
    if path.suffix == ".npz":
        return {name: values.tolist() if values.dtype.kind == "U" else values for name, values in np.load(path).items()}
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        texts = {name: values for name, values in table.to_pydict().items() if isinstance(values[0], str)}
        numbers = table.drop_columns(list(texts))
        return texts | {f.name: np.array(numbers[f.name].to_pylist(), dtype_of(f.type)) for f in numbers.schema}
    tensors = load_file(path)
    return {
        name: bytes(tensor.numpy()).decode().split("\0") if tensor.dtype == torch.uint8 else tensor.numpy()
        for name, tensor in tensors.items()
    }


def dtype_of(kind: Any) -> Any:
    """Return the type of the numbers in a column of numbers or of (nested) lists of them."""
    return dtype_of(kind.value_type) if hasattr(kind, "value_type") else kind.to_pandas_dtype()


@pytest.fixture(scope="module")
def expected(run: Path, photos: Path) -> mc.Embeddings:
    return mc.embed(mc.load_encoder(run), photos, batch_images=2)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_a_file_holds_names_labels_splits_and_vectors(
    suffix: str, run: Path, photos: Path, expected: mc.Embeddings, tmp_path: Path
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "new" / f"photos{suffix}"
    assert main(words(run, photos, out)) == 0
    found = read(out)
    assert found["name"] == expected.names == sorted(expected.names)
    assert found["name"][0] == "train/cat/0.png"
    assert found["label"] == ["cat"] * 9 + ["dog"] * 11
    assert found["split"] == ["train"] * 17 + ["val"] * 3
    assert found["vector"].dtype == np.float32
    np.testing.assert_array_equal(found["vector"], expected.vectors.numpy())
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.json"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_all_patch_tokens_can_be_kept(suffix: str, run: Path, photos: Path, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    assert main(words(run, photos, tmp_path / f"a{suffix}", pool="tokens", block=0)) == 0
    tokens = mc.embed(mc.load_encoder(run, block=0), photos, pool="tokens", batch_images=2).vectors
    assert tokens.shape == (COUNT, 16, 48)
    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}")["vector"], tokens.numpy())


def test_a_safetensors_file_is_the_one_that_the_library_writes(run: Path, photos: Path, tmp_path: Path) -> None:
    assert main(words(run, photos, tmp_path / "a.safetensors", neighbors=2)) == 0
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "theirs.safetensors")
    with (
        safe_open(tmp_path / "a.safetensors", "pt") as ours,
        safe_open(tmp_path / "theirs.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys()) == {"name", "label", "split", "vector", "neighbors", "similarity"}
        assert all(torch.equal(ours.get_tensor(key), theirs.get_tensor(key)) for key in theirs.keys())  # noqa: SIM118


def test_the_card_says_weights_size_and_normalization(run: Path, photos: Path, tmp_path: Path) -> None:
    assert main(words(run, photos, tmp_path / "a.npz", **{"data.mean": "[0.1,0.2,0.3]", "data.std": "[1,1,2]"})) == 0
    card = json.loads((tmp_path / "a.npz.json").read_text())
    assert (card["checkpoint"], card["origin"]) == (str(run), "run at step 7")
    assert card["shape"] == [COUNT, 48]
    settings = card["settings"]
    assert (settings["image_size"], settings["mean"], settings["std"]) == ([32, 32], [0.1, 0.2, 0.3], [1, 1, 2])
    assert (settings["pool"], settings["block"], settings["precision"]) == ("avg", -1, "float32")


def test_a_killed_embedding_is_resumed_and_ends_with_the_same_bits(run: Path, photos: Path, tmp_path: Path) -> None:
    assert main(words(run, photos, tmp_path / "whole.npz")) == 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        out = tmp_path / f"{number.name}.npz"
        process = Process("mae_curriculum", *words(run, photos, out))
        while not list(out.with_name(f"{out.name}.parts").glob("*.safetensors")):
            time.sleep(0.005)
            assert process.poll() is None
        process.send(number)
        stderr = process.communicate()[1]
        assert process.returncode == code
        assert not out.exists()
        if number == signal.SIGTERM:
            assert "SIGTERM: stopped before" in stderr
            assert "run the same command to resume" in stderr
        assert main(words(run, photos, out)) == 0
        assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def started(run: Path, photos: Path, out: Path, **settings: Any) -> Path:
    """Leave the first part of an embedding, with vectors of 7, as a killed process does; return the parts."""
    assert main(words(run, photos, out, **settings)) == 0
    parts = out.with_name(f"{out.name}.parts")
    parts.mkdir()
    card = json.loads(out.with_name(f"{out.name}.json").read_text())
    (parts / "card.json").write_text(json.dumps({"settings": card["settings"]}))
    save_file({"vectors": torch.full((2, 48), 7.0), "ids": torch.arange(2)}, parts / "00000000.safetensors")
    out.unlink()
    return parts


def test_batches_that_are_done_are_kept(run: Path, photos: Path, expected: mc.Embeddings, tmp_path: Path) -> None:
    started(run, photos, tmp_path / "a.npz")
    assert main(words(run, photos, tmp_path / "a.npz")) == 0
    vectors = read(tmp_path / "a.npz")["vector"]
    assert (vectors[:2] == 7).all()
    np.testing.assert_array_equal(vectors[2:], expected.vectors[2:].numpy())


def test_parts_with_other_settings_are_refused_and_kept(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = started(run, photos, tmp_path / "a.npz")
    assert main(words(run, photos, tmp_path / "a.npz", batch_images=3)) == 2
    error = capsys.readouterr().err
    assert f"out: {parts} belongs to an embedding with other settings (batch_images: 2 -> 3); choose another" in error
    assert (parts / "00000000.safetensors").exists()


def test_an_embedding_that_another_job_works_on_is_refused(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = started(run, photos, tmp_path / "a.npz")
    with hold(parts / "lock.json", on_takeover=print):
        assert main(words(run, photos, tmp_path / "a.npz")) == 2
    assert f"{parts} is in use by process" in capsys.readouterr().err


def test_two_processes_write_the_same_file_as_one(run: Path, photos: Path, tmp_path: Path) -> None:
    assert main(words(run, photos, tmp_path / "one.npz", neighbors=2)) == 0
    done = two_processes(*words(run, photos, tmp_path / "two.npz", neighbors=2))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert done.stdout.count("two.npz: vectors [20, 48]") == 1


def test_a_complete_file_is_left_as_it_is(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.npz"
    assert main(words(run, photos, out)) == 0
    before = out.stat().st_mtime_ns
    (tmp_path / "a.npz.parts").mkdir()  # of a process that was killed just before its end
    assert main(words(run, photos, out)) == 0
    assert f"{out} is complete, with the same weights, images and settings" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.npz.json"]


def test_a_file_of_other_weights_images_or_settings_is_refused(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.npz"
    assert main(words(run, photos, out)) == 0
    before = out.read_bytes()
    other = write_run(tmp_path / "other", seed=1)
    for message, arguments in {
        "weights: ": words(other, photos, out),
        "images: ": words(run, photos / "train", out),
        "(pool: avg -> token)": words(run, photos, out, pool="token"),
    }.items():
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"out: {out} belongs to an embedding with other settings" in error
        assert message in error
        assert error.endswith("choose another --out, or remove it\n")
    assert out.read_bytes() == before


def test_a_file_that_is_no_embedding_is_refused_and_kept(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.npz").write_text("precious")
    assert main(words(run, photos, tmp_path / "a.npz")) == 2
    assert "a.npz exists, and is no embedding" in capsys.readouterr().err
    assert (tmp_path / "a.npz").read_text() == "precious"


def test_images_that_cannot_be_read_are_listed_and_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 40), (50 * number, 9, 9)).save(folder / f"{number}.png")
    for name in ("0.png", "1.png", "3.png"):  # the first batch has none that can be read
        (folder / name).write_bytes(b"no image")
    assert main(words(run, folder, tmp_path / "a.npz")) == 0
    assert "3 images cannot be read and are left out: 0.png, 1.png, 3.png" in capsys.readouterr().err
    found = read(tmp_path / "a.npz")
    assert set(found) == {"name", "vector"}
    assert found["name"] == ["2.png", "4.png"]
    assert np.isfinite(found["vector"]).all()
    assert json.loads((tmp_path / "a.npz.json").read_text())["broken"] == ["0.png", "1.png", "3.png"]


def test_neighbors_are_the_most_similar_other_images_and_shown(
    run: Path, photos: Path, expected: mc.Embeddings, tmp_path: Path
) -> None:
    assert main(words(run, photos, tmp_path / "a.npz", neighbors=3)) == 0
    found = read(tmp_path / "a.npz")
    similarity = torch.nn.functional.cosine_similarity(expected.vectors[:, None], expected.vectors[None], dim=2)
    order = similarity.fill_diagonal_(-1).argsort(dim=1, descending=True)[:, :3].numpy()
    np.testing.assert_array_equal(found["neighbors"], order)
    np.testing.assert_allclose(found["similarity"], np.take_along_axis(similarity.numpy(), order, axis=1), atol=1e-5)
    with Image.open(tmp_path / "a.npz.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 2 * sheet.width  # 12 rows of 4


BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "batch_images must be at least 1, got 0": {"batch_images": 0},
    "neighbors must be at least 1 or null, got 0": {"neighbors": 0},
    "neighbors is 20, but there are only 20 images": {"neighbors": 20},
    "neighbors need one vector per image, not pool tokens; choose avg or token": {"neighbors": 2, "pool": "tokens"},
    "block must be in -2..1 for this encoder, got -3": {"block": -3},
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_bad_settings_are_refused_in_one_line(
    message: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(run, photos, tmp_path / "a.npz", **BAD_SETTINGS[message])) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_among_the_images_is_refused(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(run, photos, photos / "new" / "a.npz", neighbors=2)) == 2
    assert f"out: a contact sheet in {photos} would become one of its images" in capsys.readouterr().err
    assert not (photos / "new").exists()


def test_other_formats_and_a_missing_checkpoint_are_refused(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(run, photos, tmp_path / "a.csv")) == 2
    assert "the file name must end in .parquet, .npz or .safetensors, got" in capsys.readouterr().err
    assert main(words(run / "nothing", photos, tmp_path / "a.npz")) == 2
    assert "nothing does not exist" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_refused_before_the_work(
    run: Path, photos: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("100k")  # all patch tokens of 20 images take 61 kB, and their file as much
    assert main(words(run, photos, disk / "a.npz", pool="tokens")) == 2
    assert "out: the vectors and their file need 0.1 MB in" in capsys.readouterr().err
    assert list(disk.iterdir()) == []


def test_what_was_done_before_a_disk_was_full_is_kept(
    run: Path, photos: Path, expected: mc.Embeddings, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    out = small_disk("2m,nr_inodes=9") / "a.npz"
    done = two_processes(*words(run, photos, out))
    assert done.returncode == 2
    assert done.stderr.count("cannot be written (No space left on device); once it can, run the same command") == 2
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert list(out.parent.rglob("*.safetensors"))
    small_disk("2m,nr_inodes=99")
    assert main(words(run, photos, out)) == 0
    np.testing.assert_array_equal(read(out)["vector"], expected.vectors.numpy())


def test_a_disk_that_is_full_at_the_end_leaves_no_file(
    run: Path, photos: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk("2m,nr_inodes=6") / "a.npz"  # the disk itself, parts, their card, lock and batch, and the card
    assert main(words(run, photos, out, batch_images=COUNT)) == 2
    assert f"out: {out} cannot be written (No space left on device); once it can" in capsys.readouterr().err
    assert not out.exists()
    small_disk("2m,nr_inodes=9")
    assert main(words(run, photos, out, batch_images=COUNT)) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.npz", "a.npz.json"]
