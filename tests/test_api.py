"""The Python API: each entry, what it refuses, and where it may be called from."""

import ast
import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image

import mae_curriculum as mc
from mae_curriculum.config import load
from mae_curriculum.data.augment import resize_and_crop
from mae_curriculum.data.decode import read_image
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.stop import SIGNALS
from tests.processes import ROOT
from tests.runs import options
from tests.small import SMALL

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PIXELS = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint, and statistics of its own."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.claim(mc.PretrainConfig(model=SMALL, data=mc.DataConfig(mean=MEAN, std=STD)), command="pretrain")
    folder.save({"steps_done": 7, "model": build_model(SMALL, seed=0).state_dict()}, keep=1)
    return folder.path


@pytest.fixture(scope="module")
def encoder(run: Path) -> mc.Encoder:
    return mc.load_encoder(run)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_api_is_imported_in_a_tenth_of_a_second_and_needs_torch_only_when_used() -> None:
    code = """if True:
        import sys, time
        start = time.process_time()
        import mae_curriculum as mc
        print(time.process_time() - start)
        sys.modules["torch"] = None  # as if it were not installed
        mc.Clock(mc.Curriculum.preset("none"), image_size=(8, 8), patch_size=(8, 8), images_per_epoch=1, epochs=1,
                 batch_images=1)
        mc.PretrainConfig()
        try:
            mc.load_encoder
        except ImportError as error:
            print(error)
        """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, message = done.stdout.splitlines()
    assert float(seconds) < 0.1
    assert message.startswith("mae_curriculum.load_encoder needs the package 'torch', which is not installed; run `pip")


def test_every_name_is_listed_typed_and_documented() -> None:
    tree = ast.parse(Path(str(mc.__file__)).read_text())
    typed, _ = [node for node in tree.body if isinstance(node, ast.If)]
    aliases = [alias for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {alias.asname or alias.name for alias in aliases} == set(mc.__all__) == set(dir(mc))
    assert all(getattr(mc, name).__doc__ for name in mc.__all__)
    with pytest.raises(AttributeError, match="module 'mae_curriculum' has no attribute 'pretrian'"):
        _ = mc.pretrian  # type: ignore[attr-defined]


def test_a_curriculum_is_found_by_name_and_made_of_stages() -> None:
    curriculum = mc.Curriculum.preset("efficienttrain_pp")
    assert curriculum.stages == (mc.Stage(0.2, 96), mc.Stage(0.4, 160), mc.Stage(0.4, 224))
    assert curriculum.pace == "compute"
    with pytest.raises(mc.ConfigError, match=r"^curriculum: cannot read 'efficient': .*; recipes: efficienttrain, "):
        mc.Curriculum.preset("efficient")


def test_a_clock_returns_the_size_of_each_step() -> None:
    curriculum = mc.Curriculum.preset("efficienttrain")
    clock = mc.Clock(
        curriculum, image_size=(32, 32), patch_size=(4, 4), images_per_epoch=160, epochs=1, batch_images=16
    )
    assert [clock.moment(step).size[0] for step in range(clock.total_steps)] == [24] * 6 + [28] * 2 + [32] * 2


def test_the_low_frequency_crop_keeps_means() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = mc.low_frequency_crop(images, (24, 24))
    assert small.shape == (2, 3, 24, 24)
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)))


def test_a_plan_has_the_speed_up_before_anything_runs() -> None:
    config = mc.PretrainConfig(
        model=SMALL,
        data=mc.DataConfig(image_count=1000),
        curriculum=mc.Curriculum.preset("efficienttrain"),
        batch_size=100,
        epochs=10,
    )
    plan = mc.plan(config)
    assert plan["steps"] == 100
    assert [stage["size"] for stage in plan["stages"]] == [[24, 24], [24, 24], [32, 32]]
    assert 1.3 < plan["speedup"] < 1.8


def test_features_are_those_of_the_normalized_images(encoder: mc.Encoder) -> None:
    with torch.no_grad():
        expected = encoder.model.features(normalize(PIXELS, MEAN, STD))
    assert encoder.model.pools == ("token", "avg")
    assert torch.equal(encoder.features(PIXELS, "token"), expected[:, 0])
    assert torch.equal(encoder.features(PIXELS), expected[:, 1])
    assert torch.equal(encoder(PIXELS), expected[:, 1])
    assert expected.shape == (4, 2, 48)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-4), (torch.float16, 2e-2)])
def test_features_of_floating_point_images_in_0_to_1_are_those_of_their_pixels(
    dtype: torch.dtype, tolerance: float, encoder: mc.Encoder
) -> None:
    features = encoder.features((PIXELS / 255).to(dtype))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, encoder.features(PIXELS), atol=tolerance, rtol=0)


def test_an_encoder_takes_any_size_of_whole_patches_and_computes_no_gradient(encoder: mc.Encoder) -> None:
    features = encoder.features(torch.rand(2, 3, 40, 16, requires_grad=True))
    assert features.shape == (2, 48)
    assert not features.requires_grad
    assert not any(module.training for module in encoder.modules())
    assert encoder.vit.embed_dim == 48


BAD_IMAGES: dict[str, tuple[type[Exception], Any]] = {
    r"images must be uint8 in 0..255 or floating point in 0..1, got torch.int64": (TypeError, PIXELS.long()),
    r"images must have the shape \(b, 3, h, w\), with h a multiple of 8 and w of 8; got \(3, 32, 32\)": (
        ValueError,
        PIXELS[0],
    ),
    r"got \(4, 1, 32, 32\)": (ValueError, PIXELS[:, :1]),
    r"got \(4, 3, 30, 32\)": (ValueError, PIXELS[:, :, :30]),
    r"got \(4, 3, 32, 31\)": (ValueError, PIXELS[..., :31]),
    r"got \(0, 3, 32, 32\)": (ValueError, PIXELS[:0]),
    r"floating-point images must be in 0..1, not normalized; got 0..255": (
        ValueError,
        torch.tensor([0.0, 255.0]).repeat(3 * 32 * 16).view(1, 3, 32, 32),
    ),
    r"got nan..nan": (ValueError, torch.full((1, 3, 32, 32), torch.nan)),
}


@pytest.mark.parametrize("message", BAD_IMAGES)
def test_bad_images_are_refused_in_one_line(message: str, encoder: mc.Encoder) -> None:
    kind, images = BAD_IMAGES[message]
    with pytest.raises(kind, match=message) as caught:
        encoder.features(images)
    assert "\n" not in str(caught.value)


def test_an_unknown_pool_is_refused(encoder: mc.Encoder) -> None:
    with pytest.raises(ValueError, match=r"pool must be one of token, avg, tokens for this encoder, got 'max'"):
        encoder.features(PIXELS, "max")  # type: ignore[arg-type]


def test_a_path_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not weights")
    for name, message in {
        "missing": "missing does not exist",
        "empty": r"neither a run folder \(config.yaml\) nor a Hugging Face one",
        "notes.txt": "cannot be read",
    }.items():
        with pytest.raises(mc.ConfigError, match=message) as caught:
            mc.load_encoder(tmp_path / name)
        assert "\n" not in str(caught.value)


NAMES = ["train/cat/b.png", "train/dog/a.png", "train/dog/c.png", "val/cat/a.png"]


def test_embed_returns_the_features_of_all_intact_images(encoder: mc.Encoder, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (80 * number, 99, 10)).save(tmp_path / name)
    (tmp_path / "train/cat/broken.png").write_bytes(b"no image")
    for pool in ("avg", "tokens"):
        found = mc.embed(encoder, tmp_path, pool=pool, batch_images=2)
        assert found.names == NAMES
        assert found.labels == ["cat", "dog", "dog", "cat"]
        assert found.splits == ["train", "train", "train", "val"]
        assert found.broken == ["train/cat/broken.png"]
        pixels = torch.stack([resize_and_crop(read_image(tmp_path / name, 3), (32, 32)) for name in NAMES])
        torch.testing.assert_close(found.vectors, encoder.features(pixels, pool))


def test_embed_of_one_folder_has_neither_labels_nor_splits(encoder: mc.Encoder, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a\udcff.png")
    found = mc.embed(encoder, tmp_path)
    assert (found.names, found.labels, found.splits) == (["a\\udcff.png"], None, None)


def test_embed_refuses_a_source_without_images_that_can_be_read(encoder: mc.Encoder, tmp_path: Path) -> None:
    with pytest.raises(mc.ConfigError, match="no images in"):
        mc.embed(encoder, ROOT / "slurm")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(mc.ConfigError, match=r"none of the 1 images can be read, such as broken.png"):
        mc.embed(encoder, tmp_path)


def test_an_encoder_can_end_at_any_block(run: Path, encoder: mc.Encoder) -> None:
    first, same = (mc.load_encoder(run, block=block) for block in (0, -2))
    with torch.no_grad():
        images = normalize(PIXELS, MEAN, STD)
        [expected] = encoder.vit.forward_intermediates(images, indices=[0], norm=True, output_fmt="NLC")[1]
    torch.testing.assert_close(first.features(PIXELS, "tokens"), expected)
    assert torch.equal(same.features(PIXELS), first.features(PIXELS))
    assert not torch.allclose(first.features(PIXELS), encoder.features(PIXELS), atol=1e-3)
    with pytest.raises(mc.ConfigError, match=r"block must be in -2..1 for this encoder, got 2"):
        mc.load_encoder(run, block=2)


def test_an_encoder_works_in_a_thread(run: Path, encoder: mc.Encoder) -> None:
    with ThreadPoolExecutor(1) as pool:
        features = pool.submit(lambda: mc.load_encoder(str(run)).features(PIXELS)).result()
    assert torch.equal(features, encoder.features(PIXELS))


@pytest.mark.usefixtures("process_group")
def test_an_encoder_works_in_an_event_loop_and_a_process_group(run: Path, encoder: mc.Encoder) -> None:
    async def features() -> torch.Tensor:
        return mc.load_encoder(run).features(PIXELS)

    assert torch.equal(asyncio.run(features()), encoder.features(PIXELS))


def quick_run(folder: Path) -> mc.PretrainConfig:
    return load(mc.PretrainConfig, options(folder, epochs=1))


def test_pretrain_returns_a_result_and_leaves_signals_and_process_groups_alone(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    result = mc.pretrain(quick_run(tmp_path / "run"))
    assert isinstance(result, mc.PretrainResult)
    assert (result.finished, result.folder) == (True, tmp_path / "run")
    assert result.loss is not None
    assert result.accuracy is not None
    assert 0 < result.accuracy < 1
    assert result.summary["loss"] == result.loss
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert not dist.is_initialized()
    assert mc.pretrain(quick_run(tmp_path / "run")) == result  # finished already
    assert mc.load_encoder(result.folder).features(PIXELS[:, :1]).shape == (4, 48)
    with pytest.raises(mc.ConfigError, match=r"\(epochs: 1 -> 2\)"):
        mc.pretrain(replace(quick_run(tmp_path / "run"), epochs=2))


@pytest.mark.usefixtures("process_group")
def test_pretrain_works_in_a_thread_of_an_event_loop_with_a_process_group(tmp_path: Path) -> None:
    async def train() -> mc.PretrainResult:
        return await asyncio.to_thread(mc.pretrain, quick_run(tmp_path / "run"))

    assert asyncio.run(train()).finished
    assert dist.is_initialized()


def test_the_training_loop_in_the_readme_runs() -> None:
    pattern = r"^#+ In your own training loop\n.*?```python\n(.*?)```"
    found = re.search(pattern, (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    namespace: dict[str, Any] = {}
    exec(found[1], namespace)
    assert [span.size for span in namespace["clock"].spans] == [(24, 24), (28, 28), (32, 32)]
    assert namespace["step"] == 9
    assert namespace["loss"].isfinite()
