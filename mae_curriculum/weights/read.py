"""Read checkpoints of any origin, recognized by their keys.

Encoders get timm's names, decoders those of facebookresearch/mae. Unknown keys are an
error that lists them. Code in a file is never run.
"""

import argparse
import json
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from mae_curriculum.config import ConfigError, load_part
from mae_curriculum.files import read_json
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.run.checkpoint import is_intact, load_state, steps_of
from mae_curriculum.run.folder import RunFolder, run_and_epochs
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.weights.names import (
    DECODER_KEY,
    MODEL_KEY,
    VIT_KEY,
    decoder_to_mae,
    format_keys,
    from_hugging_face,
    join_qkv,
    read_metadata,
)
from mae_curriculum.weights.run_settings import run_settings

NAMES = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
}
"""timm's plain ViTs by width and depth, for files without metadata."""


@dataclass(frozen=True)
class Weights:
    """The weights of an encoder and maybe its decoder, and the model that they belong to."""

    model: ModelConfig
    encoder: dict[str, Tensor]
    """timm's names; for a fine-tuned model also `head.*` and `fc_norm.*`."""
    decoder: dict[str, Tensor]
    """Names of facebookresearch/mae, `decoder_*` and `mask_token`; empty without a decoder."""
    origin: str
    """The kind of checkpoint that was recognized."""


def read_weights(path: Path, *, heads: int | None = None) -> Weights:
    """Read a run, RUN or RUN@EPOCHS, or a checkpoint of facebookresearch/mae, Hugging Face ViT and ViTMAE, or timm.

    heads   attention heads of the encoder, for files that do not say so and whose width is none of timm's.
    Raises  ConfigError if the file cannot be read, is of an unknown kind, or has unknown keys.
    """
    is_run = run_and_epochs(path)[0].config.exists()
    weights = _read_run(path) if is_run else _read_foreign(path, heads)
    if heads not in (None, weights.model.heads):
        known = weights.model.heads or f"those of {weights.model.name}"
        raise ConfigError(f"heads={heads} conflicts with {path}, which has {known}; omit --heads")
    return weights


def _read_foreign(path: Path, heads: int | None) -> Weights:
    state, settings = _read_state(path)
    if MODEL_KEY in settings:
        return Weights(load_part(ModelConfig, json.loads(settings[MODEL_KEY])), state, {}, "export of this project")
    origin = "timm"
    if any("embeddings.patch_embeddings." in key for key in state):
        origin = "Hugging Face"
        state = join_qkv({from_hugging_face(key): value for key, value in state.items()})
    elif "mask_token" in state:
        origin = "facebookresearch/mae"
    state.pop("decoder_pos_embed", None)  # the fixed table, which the model builds itself
    encoder = {key: value for key, value in state.items() if VIT_KEY.fullmatch(key)}
    decoder = {key: value for key, value in state.items() if DECODER_KEY.fullmatch(key)}
    if "blocks.0.attn.qkv.weight" not in encoder or "patch_embed.proj.weight" not in encoder:
        raise ConfigError(f"{path}: not the weights of a ViT; its keys are {format_keys(state)}")
    unknown = state.keys() - encoder.keys() - decoder.keys()
    if unknown:
        raise ConfigError(f"{path}: recognized as {origin}, but these keys are unknown: {format_keys(unknown)}")
    if "head.weight" in encoder:
        origin += f" classifier of {len(encoder['head.weight'])} classes"
    model = _infer_model(encoder, decoder, {"num_attention_heads": heads} | settings, path)
    return Weights(model, encoder, decoder, origin)


def _read_run(path: Path) -> Weights:
    folder, epochs = run_and_epochs(path)
    checkpoint = folder.newest() if epochs is None else _find_kept(folder, epochs)
    if checkpoint is None:
        raise ConfigError(f"{path} has no checkpoint yet")
    state = load_state(checkpoint)
    names = {key: key.removeprefix("encoder.") for key in state["model"] if key.startswith("encoder.")}
    if not names:
        raise ConfigError(f"{path} is a run without a masked autoencoder; use the .safetensors file in it")
    encoder = {name: state["model"][key] for key, name in names.items()}
    decoder = decoder_to_mae(state["model"])
    model = load_part(ModelConfig, run_settings(path)["model"])
    return Weights(model, encoder, decoder, f"run at step {state['steps_done']}")


def _find_kept(folder: RunFolder, epochs: int) -> Path:
    """Return the checkpoint that a run kept at this number of equivalent epochs; raises ConfigError."""
    paths = {steps_of(path): path for path in folder.checkpoints if is_intact(path)}
    saves = [row for row in Journal(folder.journal).rows() if row["event"] == "save" and row.get("kept")]
    kept = {int(row["epochs"]): paths[row["steps_done"]] for row in saves if row["steps_done"] in paths}
    if epochs not in kept:
        available = ", ".join(map(str, sorted(kept))) or "none; set saving.keep_every_epochs"
        raise ConfigError(f"{folder.path} has no intact checkpoint of {epochs} epochs, only of: {available}")
    return kept[epochs]


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a file or a Hugging Face folder, and the settings stored with them."""
    settings: dict[str, Any] = {}
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(f"{path} is neither a run folder (config.yaml) nor a Hugging Face one (config.json)")
        settings, path = read_json(path / "config.json"), path / "model.safetensors"
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path), settings | read_metadata(path)
        # MAE's files hold their command line as a Namespace, which is nothing but names and values
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or a dangerous file
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} cannot be read safely: {reason}; save only model.state_dict() to it") from error
    arguments = content.get("args") if isinstance(content, dict) else None
    if isinstance(arguments, argparse.Namespace):
        settings = vars(arguments)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{path}: no dictionary of tensors, neither at the top nor under 'model' or 'state_dict'")
    return {key.removeprefix("module."): value for key, value in content.items()}, settings


def _infer_model(
    encoder: dict[str, Tensor], decoder: dict[str, Tensor], settings: dict[str, Any], path: Path
) -> ModelConfig:
    """Derive the model from the shapes of its weights and the settings stored with them."""
    width, channels, patch_size, patch_width = encoder["patch_embed.proj.weight"].shape
    depth = _count_blocks(encoder, "blocks")
    prefix = sum(encoder[key].shape[1] for key in ("cls_token", "reg_token") if key in encoder)
    patches = encoder["pos_embed"].shape[1] - prefix if "pos_embed" in encoder else 0
    grid = isqrt(patches)
    if patch_size != patch_width or grid == 0 or grid * grid != patches:
        raise ConfigError(f"{path}: {patches} patches of {patch_size}x{patch_width} do not form a square image")
    name, heads = NAMES.get((width, depth)), settings.get("num_attention_heads")
    if name is None and heads is None:
        raise ConfigError(f"{path} does not say how many attention heads its ViT of width {width} has; add --heads N")
    model = ModelConfig(
        name=name or "vit_base_patch16_224",
        image_size=grid * patch_size,
        patch_size=patch_size,
        channels=channels,
        width=None if name else width,
        depth=None if name else depth,
        heads=heads,
        mask_ratio=settings.get("mask_ratio", ModelConfig.mask_ratio),
        target="norm_pixels" if settings.get("norm_pix_loss", True) else "pixels",
    )
    if not decoder:
        return model
    decoder_width = decoder["decoder_embed.weight"].shape[0]
    return replace(
        model,
        decoder_width=decoder_width,
        decoder_depth=_count_blocks(decoder, "decoder_blocks"),
        decoder_heads=settings.get("decoder_num_attention_heads", max(1, decoder_width // 32)),  # MAE's are 32 wide
    )


def _count_blocks(weights: dict[str, Tensor], blocks: str) -> int:
    return len({key.split(".")[1] for key in weights if key.startswith(f"{blocks}.")})
