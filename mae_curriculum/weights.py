"""Weights from elsewhere: the checkpoints of other code come in under this project's names, told apart by their keys.

Encoders bear timm's names, decoders those of facebookresearch/mae, which are this project's too. What fits nowhere is
an error that lists the keys. No file is trusted to run code.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save
from torch import Tensor

from mae_curriculum.checkpoint import RunFolder, is_whole, load_state, read_json, run_and_epochs, step_of, write_whole
from mae_curriculum.config import ConfigError, differences, load_part, plain
from mae_curriculum.distributed import World
from mae_curriculum.model import MaskedAutoencoder, ModelConfig, build_model
from mae_curriculum.positions import sincos_positions
from mae_curriculum.sources import DataConfig
from mae_curriculum.tracking import Journal

NAMES = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
}
"""timm's plain ViTs by width and depth, for files that do not say what they hold."""

MODEL_KEY = "mae_curriculum.model"
"""Under this key a safetensors file says, as JSON, which `ModelConfig` its weights belong to."""

RUNS_IMAGES = "run"
"""The `data.source` that stands for the images that a checkpoint's run was trained on."""

_VIT_KEY = re.compile(
    r"(cls_token|reg_token|pos_embed|patch_embed\.proj\.\w+|(norm|fc_norm|norm_pre|head)\.\w+"
    r"|blocks\.\d+\.((norm[12]|attn\.(qkv|proj|q_norm|k_norm)|mlp\.fc[12])\.\w+|ls[12]\.gamma))"
)
_DECODER_KEY = re.compile(
    r"(mask_token|decoder_(embed|norm|pred)\.\w+"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.\w+)"
)
_HUGGING_FACE = [  # on disk, and in the memory of transformers 5; the layers of encoder and decoder bear the same names
    (r"^(vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(vit\.)?(encoder\.layer|layers)\.(\d+)\.", r"blocks.\3."),
    (r"^(vit\.)?layernorm\.", "norm."),
    (r"^decoder\.decoder_(layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\2."),
    (r"^decoder\.", ""),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]


@dataclass(frozen=True)
class Weights:
    """The weights of an encoder, and of its decoder if there is one, with the shape of the model that they make."""

    model: ModelConfig
    encoder: dict[str, Tensor]
    """timm's names; of a fine-tuned model also `head.*` and `fc_norm.*`."""
    decoder: dict[str, Tensor]
    """This project's names, `decoder_*` and `mask_token`; empty if there is none."""
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


def load_into_(module: torch.nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load weights, all of them and nothing else; raises ConfigError that lists what does not fit."""
    own = module.state_dict()
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    shapes = [
        f"{key} {list(weights[key].shape)}, here {list(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    complaints = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(keys for _, keys in complaints):
        told = "; ".join(f"{name}: {_some(keys)}" for name, keys in complaints if keys)
        raise ConfigError(f"{what} does not fit: {told}")
    module.load_state_dict(weights)


def encoder_of(weights: Weights, what: object) -> MaskedAutoencoder:
    """Make the model whose encoder describes images as these weights do; a classifier's head is left out.

    what    names the checkpoint in messages.
    Raises  ConfigError that lists what does not fit.
    """
    if wrong := [key for key, value in weights.encoder.items() if not value.isfinite().all()]:
        raise ConfigError(f"{what}: these weights are not finite numbers: {_some(wrong)}")
    model = build_model(weights.model, seed=0)
    encoder = {key: value for key, value in weights.encoder.items() if not key.startswith("head.")}
    if "fc_norm.weight" in encoder:  # a classifier that averages the patches first and normalises then
        model.encoder.norm, model.encoder.fc_norm = torch.nn.Identity(), model.encoder.norm
    table = model.encoder.pos_embed
    load_into_(model.encoder, encoder, f"the encoder of {what}")
    if table is not None:  # the parameter itself, so it now holds the checkpoint's
        fixed = sincos_positions(model.full_grid, model.full_grid, table.shape[-1], table.device)
        prefix, patches = table.detach()[0].tensor_split([table.shape[1] - len(fixed)])
        model.learned_positions = bool(prefix.any()) or not torch.allclose(patches, fixed, atol=1e-4)
    return model.eval()


def autoencoder_of(weights: Weights, what: object) -> MaskedAutoencoder:
    """Make the model of these weights with its decoder, as `encoder_of`; raises ConfigError if there is none."""
    if not weights.decoder:
        raise ConfigError(
            f"reconstructions need a decoder, and {what} ({weights.origin}) has none; give the run folder, or an "
            "export with --format mae or hf_mae"
        )
    model = encoder_of(weights, what)
    own = {key: value for key, value in model.state_dict().items() if key.startswith("encoder.")}
    load_into_(model, own | weights.decoder, f"the decoder of {what}")
    return model


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Name weights by 16 hexadecimal digits."""
    name = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        name.update(key.encode())
        content: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        name.update(content)
    return name.hexdigest()[:16]


def read_together(path: Path, world: World, *, heads: int | None = None) -> Weights:
    """Read weights on every rank, and make sure that all read the same, though a run may be going on."""
    weights = read_weights(path, heads=heads)
    if len(set(world.gather(fingerprint(weights.encoder)))) > 1:
        raise ConfigError(f"{path} changed while it was read; start again, or give a file of its checkpoints' weights")
    return weights


def resolve_images(data: DataConfig, checkpoint: Path | None) -> DataConfig:
    """Replace the source `run` by the images that the checkpoint's run was trained on."""
    if data.source != RUNS_IMAGES:
        return data
    settings = run_settings(checkpoint) if checkpoint is not None else {}
    if "data" not in settings:
        raise ConfigError(f"data.source: {checkpoint} is no run with images of its own, so say which: --data.source")
    if ignored := differences(DataConfig(source=RUNS_IMAGES), data):
        raise ConfigError(
            f"data: source `run` keeps the run's own settings, not {'; '.join(ignored)}; say --data.source"
        )
    own = load_part(DataConfig, settings["data"])
    return replace(own, workers=data.workers, cache=own.cache if data.cache == DataConfig.cache else data.cache)


def run_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a run folder; none where there is no run."""
    config = run_and_epochs(path)[0].config
    settings: dict[str, Any] = yaml.safe_load(config.read_text()) if config.exists() else {}
    return settings


def save_weights(path: Path, tensors: dict[str, Tensor], model: ModelConfig | None, facts: dict[str, str]) -> None:
    """Write a safetensors file under timm's names; `model` says which plain ViT it holds, `facts` anything else."""
    metadata = facts if model is None else {MODEL_KEY: json.dumps(plain(model)), **facts}
    content = save({key: value.cpu().contiguous() for key, value in tensors.items()}, metadata)
    write_whole(path, content)


def read_facts(path: Path) -> dict[str, str]:
    """Read what stands beside the weights of a safetensors file."""
    with safe_open(path, "pt") as file:
        facts: dict[str, str] = file.metadata() or {}
    return facts


def _read_foreign(path: Path, heads: int | None) -> Weights:
    state, facts = _read_state(path)
    if MODEL_KEY in facts:
        return Weights(load_part(ModelConfig, json.loads(facts[MODEL_KEY])), state, {}, "export of this project")
    origin = "timm"
    if any("embeddings.patch_embeddings." in key for key in state):
        origin = "Hugging Face"
        state = _join_qkv({from_hugging_face(key): value for key, value in state.items()})
    elif "mask_token" in state:
        origin = "facebookresearch/mae"
    state.pop("decoder_pos_embed", None)  # the fixed table, which this model makes itself
    encoder = {key: value for key, value in state.items() if _VIT_KEY.fullmatch(key)}
    decoder = {key: value for key, value in state.items() if _DECODER_KEY.fullmatch(key)}
    if "blocks.0.attn.qkv.weight" not in encoder or "patch_embed.proj.weight" not in encoder:
        raise ConfigError(f"{path}: not the weights of a ViT; its keys are {_some(state)}")
    if unknown := state.keys() - encoder.keys() - decoder.keys():
        raise ConfigError(f"{path}: taken for {origin}, but these keys fit nowhere: {_some(unknown)}")
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
    decoder = {key: value for key, value in state["model"].items() if not key.startswith("encoder.")}
    return Weights(model, encoder, decoder, f"run at step {state['step']}")


def _kept(folder: RunFolder, epochs: int) -> Path:
    """Find the checkpoint that a run kept at so many equivalent epochs; raises ConfigError."""
    paths = {step_of(path): path for path in folder.checkpoints if is_whole(path)}
    saves = [row for row in Journal(folder.journal).rows() if row["event"] == "save" and row.get("kept")]
    kept = {int(row["epochs"]): paths[row["step"]] for row in saves if row["step"] in paths}
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


def from_hugging_face(key: str) -> str:
    """Turn a key of Hugging Face's ViT or ViTMAE into this project's, but for q, k and v, which it keeps apart."""
    for pattern, name in _HUGGING_FACE:
        key = re.sub(pattern, name, key)
    return key


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `….attn.q/k/v.weight` and `.bias` to timm's `….attn.qkv`."""
    joined = {key: value for key, value in state.items() if not re.search(r"\.attn\.[qkv]\.", key)}
    for key in state:
        if ".attn.q." in key:
            parts = [state.get(key.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
            if all(part is not None for part in parts):
                joined[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([part for part in parts if part is not None])
    return joined


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


def _some(keys: Iterable[str]) -> str:
    """List keys, the first ten of many."""
    keys = sorted(keys)
    return ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
