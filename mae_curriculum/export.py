"""Encoders for other people's code: timm, Hugging Face, facebookresearch/mae; each with a card on how to load it."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mae_curriculum.checkpoint import read_json, run_and_epochs
from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.model import TIMM_NAMES, MaskedAutoencoder, ModelConfig, build_model
from mae_curriculum.positions import sincos_positions
from mae_curriculum.pretrain import PretrainConfig
from mae_curriculum.results import as_percent
from mae_curriculum.spelling import in_form
from mae_curriculum.tracking import Journal
from mae_curriculum.weights import Weights, from_hugging_face, load_into_, read_weights, run_settings, save_weights


@dataclass(frozen=True)
class ExportConfig:
    """Export of an encoder, or of the whole autoencoder."""

    checkpoint: Path
    """Run folder, or any checkpoint that can be imported."""
    out: Path
    """File to write (timm: .safetensors, mae: .pth) or folder (hf, hf_mae)."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
    format: Literal["timm", "hf", "hf_mae", "mae"] = "timm"
    """timm: encoder as safetensors. hf: transformers' ViTModel. hf_mae: its ViTMAEForPreTraining. mae: the layout of
    facebookresearch/mae, decoder included."""

    def __post_init__(self) -> None:
        wanted = {"timm": ".safetensors", "mae": ".pth"}.get(self.format, "")
        if self.out.suffix != wanted:
            raise ConfigError(f"out: --format {self.format} writes a {wanted or 'folder'}, got '{self.out}'")
        if self.out.exists():
            raise ConfigError(f"out: {self.out} exists; remove it or choose another")
        if self.format.startswith("hf") and find_spec("transformers") is None:
            raise ConfigError(f"format {self.format} needs transformers: pip install 'mae-curriculum[hf]'")


def export(config: ExportConfig) -> int:
    """Write the weights and their card; returns the exit code."""
    weights = read_weights(config.checkpoint, heads=config.heads)
    model = build_model(weights.model, seed=0)
    if config.format in ("hf_mae", "mae") and not weights.decoder:
        raise ConfigError(
            f"format {config.format} needs a decoder, and {config.checkpoint} has none; choose timm or hf"
        )
    load_into_(model.encoder, weights.encoder, f"the encoder of {config.checkpoint}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    match config.format:
        case "timm":
            save_weights(config.out, weights.encoder, weights.model, {})
        case "mae":
            torch.save({"model": mae_layout(model, weights)}, config.out)
        case _:
            hugging_face(model, weights, decoder=config.format == "hf_mae").save_pretrained(config.out)
    card = config.out / "README.md" if config.out.is_dir() else config.out.with_suffix(".md")
    card.write_text(model_card(config, weights, model))
    print(f"{config.out}, and {card}")
    return 0


def mae_layout(model: MaskedAutoencoder, weights: Weights) -> dict[str, Tensor]:
    """Name the weights as facebookresearch/mae does, which keeps the decoder's positions too."""
    width = weights.decoder["decoder_embed.weight"].shape[0]
    patches = sincos_positions(model.full_grid, model.full_grid, width, torch.device("cpu"))
    table = torch.cat([torch.zeros(1, width), patches])[None]
    return {**weights.encoder, **weights.decoder, "decoder_pos_embed": table}


def hugging_face(model: MaskedAutoencoder, weights: Weights, *, decoder: bool) -> Any:
    """Make transformers' model with these weights."""
    import transformers

    encoder, config = model.encoder, weights.model
    if model.image_size[0] != model.image_size[1] or encoder.num_prefix_tokens != 1 or encoder.cls_token is None:
        raise ConfigError("transformers' ViT takes square images and one class token; choose --format timm")
    shape = {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.blocks[0].attn.num_heads,
        "intermediate_size": encoder.blocks[0].mlp.fc1.out_features,
        "image_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "num_channels": model.channels,
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.0,
    }
    theirs: Any
    if decoder:
        theirs = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(
                **shape,
                decoder_hidden_size=config.decoder_width,
                decoder_num_hidden_layers=config.decoder_depth,
                decoder_num_attention_heads=config.decoder_heads,
                decoder_intermediate_size=4 * config.decoder_width,
                mask_ratio=config.mask_ratio,
                norm_pix_loss=config.target == "norm_pixels",
            )
        )
    else:
        theirs = transformers.ViTModel(transformers.ViTConfig(**shape), add_pooling_layer=False)
    ours = mae_layout(model, weights) if decoder else weights.encoder
    load_into_(theirs, {key: _value(ours, from_hugging_face(key)) for key in theirs.state_dict()}, "the encoder")
    return theirs


def _value(ours: dict[str, Tensor], key: str) -> Tensor:
    """Look a weight up; of the joint matrix of q, k and v one third."""
    for part, letter in enumerate("qkv"):
        if f".attn.{letter}." in key:
            return ours[key.replace(f".attn.{letter}.", ".attn.qkv.")].chunk(3)[part].clone()
    return ours[key]


def model_card(config: ExportConfig, weights: Weights, model: MaskedAutoencoder) -> str:
    """Say what the weights are, where they come from, and how to load them."""
    default = ModelConfig()
    changed = {
        timms: getattr(weights.model, ours)
        for ours, timms in TIMM_NAMES.items()
        if getattr(weights.model, ours) != getattr(default, ours)
    }
    extras = "".join(f", {key}={value!r}" for key, value in changed.items())
    name = config.out.name
    loading = {
        "timm": f'timm.create_model("{weights.model.name}", num_classes=0, checkpoint_path="{name}"{extras})',
        "hf": f'transformers.ViTModel.from_pretrained("{name}", add_pooling_layer=False)',
        "hf_mae": f'transformers.ViTMAEForPreTraining.from_pretrained("{name}")',
        "mae": f'model.load_state_dict(torch.load("{name}")["model"])  # a model of its models_mae.py',
    }[config.format]
    lines = [
        f"# {weights.model.name}, pretrained as a masked autoencoder",
        "",
        f"Images of {model.image_size[0]}x{model.image_size[1]} pixels, {model.channels} channels, patches of "
        f"{model.patch_size[0]}; taken from a {weights.origin}.",
        "",
        "    " + loading,
        "",
        *_history(config.checkpoint),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _history(checkpoint: Path) -> list[str]:
    """Tell data, schedule, time and results of a run folder; of other checkpoints nothing is known."""
    folder, epochs = run_and_epochs(checkpoint)
    if "curriculum" not in run_settings(checkpoint):  # imported
        return []
    run = load_file(PretrainConfig, folder.config)
    mean, std = run.data.statistics(run.model.channels)
    stages = ", ".join(f"{stage.share:g} at {stage.size}" for stage in run.curriculum.stages)
    lines = [
        f"- data: {run.data.source}, normalised by mean {list(mean)} and standard deviation {list(std)}",
        f"- schedule: {run.epochs} equivalent epochs, batch {run.batch_size}, base learning rate {run.optim.base_lr:g}",
        f"- curriculum: shares of {run.curriculum.pace}: {stages} (of 224) pixels; target {run.model.target}, "
        f"mask ratio {run.model.mask_ratio:g}",
    ]
    if folder.summary.exists():
        summary = read_json(folder.summary)
        lines += [
            f"- training: {summary['train_seconds'] / 3600:.3g} h, {summary['images']} images, "
            f"{summary['flops']:.3g} FLOPs",
            f"- result: loss {in_form(summary['loss'], '{:.4f}')}; kNN accuracy {summary['knn']}, "
            f"untrained {summary['knn_untrained']}",
        ]
    measured = (row for row in Journal(folder.journal).rows() if "checkpoint" in row)
    newest = {row["event"]: row for row in measured if run_and_epochs(Path(row["checkpoint"]))[1] == epochs}
    for command in ("knn", "fewshot", "linprobe", "finetune"):
        if row := newest.get(command):
            figures = {"": row["accuracy"]} if "mean" in row["accuracy"] else row["accuracy"]
            told = ", ".join(f"{shots and f'{shots} labels '}{as_percent(figure)}" for shots, figure in figures.items())
            lines.append(f"- {command} on {row['source']}: accuracy {told}")
    return lines
