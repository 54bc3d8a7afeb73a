"""Weights from elsewhere: the checkpoints of other code come in under this project's names, told apart by their keys.

Encoders bear timm's names, decoders those of facebookresearch/mae, which are this project's too. What fits nowhere is
an error that lists the keys. No file is trusted to run code.
"""

import argparse
import json
from dataclasses import dataclass
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
    from_hugging_face,
    join_qkv,
    read_facts,
    some,
)
from mae_curriculum.weights.run_settings import run_settings

NAMES = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
}
"""timm's plain ViTs by width and depth, for files that do not say what they hold."""


@dataclass(frozen=True)
class Weights:
    """The weights of an encoder, and of its decoder if there is one, with the shape of the model that they make."""

    model: ModelConfig
    encoder: dict[str, Tensor]
    """timm's names; of a fine-tuned model also `head.*` and `fc_norm.*`."""
    decoder: dict[str, Tensor]
    """Names of facebookresearch/mae, `decoder_*` and `mask_token`; empty if there is none."""
    origin: str
    """What the checkpoint was taken for."""


def read_weights(path: Path, *, heads: int | None = None) -> Weights:
    """Read a run, RUN or RUN@EPOCHS, or a checkpoint of facebookresearch/mae, Hugging Face ViT and ViTMAE, or timm.

    heads   attention heads of the encoder, where the file does not show them and its width is none of timm's.
    Raises  ConfigError, one line, for what cannot be read, is of no known kind, or has keys that fit nowhere.
    """
    weights = _read_run(path) if run_and_epochs(path)[0].config.exists() else _read_foreign(path, heads)
    if heads not in (None, weights.model.heads):
        shown = weights.model.heads or f"those of {weights.model.name}"
        raise ConfigError(f"heads: {path} shows its attention heads ({shown}), so {heads} cannot be; leave it out")
    return weights


def _read_foreign(path: Path, heads: int | None) -> Weights:
    state, facts = _read_state(path)
    if MODEL_KEY in facts:
        return Weights(load_part(ModelConfig, json.loads(facts[MODEL_KEY])), state, {}, "export of this project")
    origin = "timm"
    if any("embeddings.patch_embeddings." in key for key in state):
        origin = "Hugging Face"
        state = join_qkv({from_hugging_face(key): value for key, value in state.items()})
    elif "mask_token" in state:
        origin = "facebookresearch/mae"
    state.pop("decoder_pos_embed", None)  # the fixed table, which this model makes itself
    encoder = {key: value for key, value in state.items() if VIT_KEY.fullmatch(key)}
    decoder = {key: value for key, value in state.items() if DECODER_KEY.fullmatch(key)}
    if "blocks.0.attn.qkv.weight" not in encoder or "patch_embed.proj.weight" not in encoder:
        raise ConfigError(f"{path}: not the weights of a ViT; its keys are {some(state)}")
    if unknown := state.keys() - encoder.keys() - decoder.keys():
        raise ConfigError(f"{path}: taken for {origin}, but these keys fit nowhere: {some(unknown)}")
    if "head.weight" in encoder:
        origin += f" classifier of {len(encoder['head.weight'])} classes"
    return Weights(
        _infer_model(encoder, decoder, {"num_attention_heads": heads} | facts, path), encoder, decoder, origin
    )


def _read_run(path: Path) -> Weights:
    folder, epochs = run_and_epochs(path)
    checkpoint = folder.newest() if epochs is None else _kept(folder, epochs)
    if checkpoint is None:
        raise ConfigError(f"{path} has no checkpoint yet")
    state = load_state(checkpoint)
    if not any(key.startswith("encoder.") for key in state["model"]):
        raise ConfigError(
            f"{path} is a run that trained no masked autoencoder; give the .safetensors file that it wrote"
        )
    model = load_part(ModelConfig, run_settings(path)["model"])
    encoder = {
        key.removeprefix("encoder."): value for key, value in state["model"].items() if key.startswith("encoder.")
    }
    return Weights(model, encoder, decoder_to_mae(state["model"]), f"run at step {state['steps_done']}")


def _kept(folder: RunFolder, epochs: int) -> Path:
    """Find the checkpoint that a run kept at so many equivalent epochs; raises ConfigError."""
    paths = {steps_of(path): path for path in folder.checkpoints if is_intact(path)}
    saves = [row for row in Journal(folder.journal).rows() if row["event"] == "save" and row.get("kept")]
    kept = {int(row["epochs"]): paths[row["steps_done"]] for row in saves if row["steps_done"] in paths}
    if epochs not in kept:
        there = f"only of {', '.join(map(str, sorted(kept)))}" if kept else "nor any other"
        raise ConfigError(
            f"{folder.path} has kept no whole checkpoint of {epochs} equivalent epochs, {there}; "
            "saving.keep_every_epochs keeps them"
        )
    return kept[epochs]


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a file or a Hugging Face folder, and what stands beside them."""
    facts: dict[str, Any] = {}
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(f"{path} is neither a run folder (config.yaml) nor a Hugging Face one (config.json)")
        facts, path = read_json(path / "config.json"), path / "model.safetensors"
    try:
        if path.suffix == ".safetensors":
            facts |= read_facts(path)
            return load_safetensors(path), facts
        # MAE's files carry their command line as a Namespace, which is nothing but names and values
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or a dangerous file
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} cannot be read safely: {reason}; save its weights alone, with torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("args"), argparse.Namespace):
        facts = dict(vars(content["args"]))
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{path}: no dictionary of tensors, nor one under 'model' or 'state_dict'")
    return {key.removeprefix("module."): value for key, value in content.items()}, facts


def _infer_model(
    encoder: dict[str, Tensor], decoder: dict[str, Tensor], facts: dict[str, Any], path: Path
) -> ModelConfig:
    """Work out the model from its weights' shapes, and from the settings that stand beside them."""
    width, channels, patch_size, patch_width = encoder["patch_embed.proj.weight"].shape
    depth = _depth(encoder, "blocks")
    prefix = sum(encoder[key].shape[1] for key in ("cls_token", "reg_token") if key in encoder)
    patches = encoder["pos_embed"].shape[1] - prefix if "pos_embed" in encoder else 0
    grid = isqrt(patches)
    if patch_size != patch_width or grid == 0 or grid * grid != patches:
        raise ConfigError(f"{path}: {patches} patches of {patch_size}x{patch_width} make no square image")
    name, heads = NAMES.get((width, depth)), facts.get("num_attention_heads")
    if name is None and heads is None:
        raise ConfigError(
            f"{path}: its weights do not show the attention heads of a ViT of width {width}; say --heads N"
        )
    decoder_width = decoder["decoder_embed.weight"].shape[0] if decoder else ModelConfig.decoder_width
    return ModelConfig(
        name=name or "vit_base_patch16_224",
        image_size=grid * patch_size,
        patch_size=patch_size,
        channels=channels,
        width=None if name else width,
        depth=None if name else depth,
        heads=heads,
        mask_ratio=facts.get("mask_ratio", ModelConfig.mask_ratio),
        target="norm_pixels" if facts.get("norm_pix_loss", True) else "pixels",
        decoder_width=decoder_width,
        decoder_depth=_depth(decoder, "decoder_blocks") or ModelConfig.decoder_depth,
        decoder_heads=facts.get("decoder_num_attention_heads", max(1, decoder_width // 32)),  # MAE's are 32 wide
    )


def _depth(weights: dict[str, Tensor], blocks: str) -> int:
    return len({key.split(".")[1] for key in weights if key.startswith(f"{blocks}.")})
