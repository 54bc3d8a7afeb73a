"""Read checkpoints of any origin, recognized by their keys.

Encoders get timm's names, decoders those of facebookresearch/mae. Unknown keys are an
error that lists them. Code in a file is never run.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError, load_part
from mae_curriculum.data.config import DataConfig
from mae_curriculum.model.config import ModelConfig, Target
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.positions import is_sincos, sincos_positions
from mae_curriculum.run.checkpoint import is_intact, load_state, steps_of
from mae_curriculum.run.folder import RunFolder, run_and_epochs
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.weights.files import Network, read_network
from mae_curriculum.weights.infer import infer_model, left_open
from mae_curriculum.weights.names import (
    DECODER_KEY,
    DECODER_PARTS,
    DIMENSIONS,
    HUGGING_FACE_PATCHES,
    MODEL_KEY,
    UNUSED_KEY,
    VIT_KEY,
    VIT_PARTS,
    Log,
    count_blocks,
    decoder_to_mae,
    format_keys,
    rename,
)
from mae_curriculum.weights.run_settings import run_settings
from mae_curriculum.weights.stated import Values, as_values, parse_metadata, read_stated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """The weights of an encoder and maybe its decoder, and the model that they belong to."""

    model: ModelConfig
    encoder: dict[str, Tensor]
    """timm's names; for a fine-tuned model also `head.*` and `fc_norm.*`."""
    decoder: dict[str, Tensor]
    """Names of facebookresearch/mae, `decoder_*` and `mask_token`; `decoder_pos_embed` only if it is not MAE's table.
    Empty without a decoder."""
    origin: str
    """The kind of checkpoint that was recognized."""
    mean: Values | None = None
    """Mean of each channel that its images are normalized with, on a scale of 0 to 1; None if it does not say."""
    std: Values | None = None
    """Standard deviation, likewise."""
    preparation: str | None = None
    """How its library prepares images otherwise than this project; None if it does not, or does not say."""
    open: tuple[str, ...] = ()
    """Options that would say what neither the checkpoint nor the user said of the decoder."""


def read_weights(
    path: Path,
    *,
    heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    decoder_heads: int | None = None,
    target: Target | None = None,
    weights: str | None = None,
    log: Log = logger.warning,
) -> Weights:
    """Read a run, RUN or RUN@EPOCHS, or a checkpoint of facebookresearch/mae, Hugging Face ViT and ViTMAE, or timm.

    heads, image_size, decoder_heads, target  of the model, where the checkpoint does not say so.
    weights  name of those to use of a file with several, such as "model_ema"; None for those that were trained.
    log      takes a line about each choice and each assumption.
    Raises   ConfigError if the file cannot be read, is of an unknown kind, has unknown keys, or leaves something open.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    hints = {"heads": heads, "image_size": size, "decoder_heads": decoder_heads, "target": target}
    if run_and_epochs(path)[0].config.exists():
        if weights is not None:
            raise ConfigError(f"weights={weights}: {path} is a run, with weights of one kind; omit --weights")
        read = _read_run(path)
    else:
        read = _read_foreign(path, hints, weights, log)
    _refuse_contradictions(read, hints, path)
    return read


def _refuse_contradictions(weights: Weights, hints: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError if the user's hints are not what the weights are."""
    given = {key: value for key, value in hints.items() if value is not None}
    if not given:
        return
    with torch.device("meta"):
        model = MaskedAutoencoder(weights.model)
    actual = {"heads": model.shape.encoder.heads, "image_size": model.image_size}
    if weights.decoder:
        actual |= {"decoder_heads": model.shape.decoder.heads, "target": weights.model.target}
    for key, value in given.items():
        if key not in actual:
            raise ConfigError(f"{key}={value}: {path} has no decoder; omit --{key}")
        if actual[key] != value:
            raise ConfigError(f"{key}={value} conflicts with {path}, which has {actual[key]}; omit --{key}")


def _read_foreign(path: Path, hints: Mapping[str, Any], wanted: str | None, log: Log) -> Weights:
    network, settings = read_network(path, wanted, log)
    is_hugging_face = HUGGING_FACE_PATCHES in network.own
    encoder, decoder = _sort(network, path, log)
    shape = (encoder["patch_embed.proj.weight"].shape[0], count_blocks(encoder, "blocks"))
    known = read_stated(settings, shape, path, is_hugging_face=is_hugging_face, log=log)
    known = replace(known, **{key: value for key, value in hints.items() if getattr(known, key) is None})
    origin = "Hugging Face" if is_hugging_face else "facebookresearch/mae" if decoder else "timm"
    open_: tuple[str, ...] = ()
    if MODEL_KEY in settings:
        origin = origin if decoder else "export of this project"
        model = load_part(ModelConfig, parse_metadata(settings, MODEL_KEY, path))
    else:
        model = infer_model(encoder, decoder, known, path, log)
        open_ = left_open(model, known) if decoder else ()
    if "head.weight" in encoder:
        origin += f" classifier of {len(encoder['head.weight'])} classes"
    encoder, decoder = _with_exact_positions(encoder, decoder, model)
    return Weights(model, encoder, decoder, origin, known.mean, known.std, known.preparation, open_)


def _sort(network: Network, path: Path, log: Log) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the encoder and of the decoder, renamed; log what is left out.

    Raises  ConfigError for tensors of the network that are unknown.
    """
    own, beside = rename(network.own, network.beside)
    both = beside | own
    encoder = {key: value for key, value in both.items() if VIT_KEY.fullmatch(key)}
    decoder = {key: value for key, value in both.items() if DECODER_KEY.fullmatch(key)}
    if not all(key in encoder for key in VIT_PARTS):
        raise ConfigError(f"{path}: not the weights of a ViT; its keys are {format_keys(both)}")
    head = encoder.get("head.weight")
    if head is not None and head.shape[1:] != encoder["patch_embed.proj.weight"].shape[:1]:
        encoder = {key: value for key, value in encoder.items() if not key.startswith("head.")}
    if not all(key in decoder for key in DECODER_PARTS):
        decoder = {}
    left_out = both.keys() - encoder.keys() - decoder.keys()
    unknown = [key for key in left_out & own.keys() if not (UNUSED_KEY.fullmatch(key) or DECODER_KEY.fullmatch(key))]
    if unknown:
        kind = "Hugging Face" if HUGGING_FACE_PATCHES in network.own else "facebookresearch/mae" if decoder else "timm"
        raise ConfigError(f"{path}: recognized as {kind}, but these keys are unknown: {format_keys(unknown)}")
    for key, value in (encoder | decoder).items():
        if value.ndim != DIMENSIONS.get(key, value.ndim):
            raise ConfigError(f"{path}: {key} has the shape {list(value.shape)}, not {DIMENSIONS[key]} dimensions")
    if left_out:
        log(f"{path}: left out, as features do not need it: {format_keys(left_out)}")
    return encoder, decoder


def _with_exact_positions(
    encoder: dict[str, Tensor], decoder: dict[str, Tensor], model: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights whose MAE table is exact where it was rounded to half precision, without that of the decoder.

    Where the class token has a position and the registers have none, as in DINOv2, the position is added to the token.
    """
    with torch.device("meta"):
        grid = MaskedAutoencoder(model).full_grid
    encoder, positions = dict(encoder), encoder.get("pos_embed")
    if positions is None:
        return encoder, decoder
    if "reg_token" in encoder and positions.shape[1] == grid[0] * grid[1] + 1:
        encoder["cls_token"] = encoder["cls_token"].float() + positions[:, :1].float()
        encoder["pos_embed"] = positions = positions[:, 1:]
    if is_sincos(positions[0], grid):
        exact = torch.zeros_like(positions, dtype=torch.float32)
        exact[0, -grid[0] * grid[1] :] = sincos_positions(grid, grid, positions.shape[-1], positions.device)
        encoder["pos_embed"] = exact
    table = decoder.get("decoder_pos_embed")
    if table is not None and is_sincos(table[0], grid):
        decoder = {key: value for key, value in decoder.items() if key != "decoder_pos_embed"}
    return encoder, decoder


def _read_run(path: Path) -> Weights:
    folder, epochs = run_and_epochs(path)
    checkpoint = folder.newest() if epochs is None else find_kept(folder, epochs)
    if checkpoint is None:
        raise ConfigError(f"{path} has no checkpoint yet")
    state = load_state(checkpoint)
    names = {key: key.removeprefix("encoder.") for key in state["model"] if key.startswith("encoder.")}
    if not names:
        hint = "use best.safetensors in it, or python -m finetune export for a classifier"
        raise ConfigError(f"{path} is a run without a masked autoencoder; {hint}")
    encoder = {name: state["model"][key] for key, name in names.items()}
    decoder = decoder_to_mae(state["model"])
    settings = run_settings(path)
    model = load_part(ModelConfig, settings["model"])
    mean, std = as_values(settings.get("mean")), as_values(settings.get("std"))  # of an import, which has no data
    if "data" in settings:
        mean, std = load_part(DataConfig, settings["data"]).statistics(model.channels)
    return Weights(model, encoder, decoder, f"run at step {state['steps_done']}", mean, std)


def find_kept(folder: RunFolder, epochs: int) -> Path:
    """Return the checkpoint of this number of equivalent epochs: one that was kept, or that of the run's end.

    Raises  ConfigError if there is none, or if it is damaged.
    """
    paths = {steps_of(path): path for path in folder.checkpoints}
    rows = list(Journal(folder.journal).rows())
    ends = {row.get("total_steps") for row in rows if row["event"] == "start"}
    saves = [row for row in rows if row["event"] == "save" and (row.get("kept") or row["steps_done"] in ends)]
    kept = {int(row["epochs"]): paths[row["steps_done"]] for row in saves if row["steps_done"] in paths}
    if epochs not in kept:
        available = ", ".join(map(str, sorted(kept))) or "none"
        raise ConfigError(
            f"{folder.path} has no checkpoint of {epochs} epochs, only of: {available}; saving.keep_every_epochs "
            "keeps those in between"
        )
    if not is_intact(kept[epochs]):
        raise ConfigError(f"{kept[epochs]} is damaged; choose a checkpoint of other epochs")
    return kept[epochs]
