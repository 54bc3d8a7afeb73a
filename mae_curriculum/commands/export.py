"""Export weights for timm, Hugging Face or facebookresearch/mae, with a model card that says how to load them."""

from dataclasses import replace
from pathlib import Path

import torch

from mae_curriculum.commands.config import ExportConfig
from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.evaluation.results import format_percent
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, timm_arguments
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import check_checkpoint, read_facts, run_and_epochs
from mae_curriculum.terminal import format_count, format_duration, format_flops, format_or_dash, printable
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.weights.build import build_autoencoder, build_encoder
from mae_curriculum.weights.read import Weights, read_weights
from mae_curriculum.weights.write import describe_weights, hugging_face, mae_layout, save_preprocessor, save_weights


def export(config: ExportConfig) -> int:
    """Write the weights and their model card; returns the exit code."""
    check_checkpoint(config.checkpoint)
    weights = read_weights(config.checkpoint, **config.hints)
    weights = replace(weights, mean=config.mean or weights.mean, std=config.std or weights.std)
    has_decoder = config.format in ("hf_mae", "mae")
    if has_decoder and not weights.decoder:
        raise ConfigError(f"format {config.format} needs a decoder, {config.checkpoint} has none; choose timm or hf")
    model = (build_autoencoder if has_decoder else build_encoder)(weights, config.checkpoint)
    if config.format.startswith("hf"):
        theirs = hugging_face(model, weights, decoder=has_decoder)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if config.format != "timm" and "head.weight" in weights.encoder:
        print("the classifier's head is left out; --format timm keeps it")
    metadata = describe_weights(weights.model, weights.mean, weights.std)
    match config.format:
        case "timm":
            save_weights(config.out, weights.encoder, metadata)
        case "mae":
            torch.save({"model": mae_layout(model, weights), **metadata}, config.out)
        case _:
            theirs.save_pretrained(config.out)
            save_preprocessor(config.out, weights, model.image_size)
    card = config.out / "README.md" if config.out.is_dir() else config.out.with_suffix(".md")
    card.write_text(model_card(config, weights, model))
    print(printable(f"{config.out}, and {card}"))
    return 0


def model_card(config: ExportConfig, weights: Weights, model: MaskedAutoencoder) -> str:
    """Return a Markdown text about the weights: what they are, how to load them, how they were trained."""
    name = config.out.name
    extras = _timm_extras(weights)
    loading = {
        "timm": f'timm.create_model("{weights.model.name}", checkpoint_path="{name}"{extras})',
        "hf": f'transformers.ViTModel.from_pretrained("{name}", add_pooling_layer=False)',
        "hf_mae": f'transformers.ViTMAEForPreTraining.from_pretrained("{name}")',
        "mae": f'model.load_state_dict(torch.load("{name}")["model"])  # a model of models_mae.py',
    }[config.format]
    lines = [
        f"# {weights.model.name}, pretrained as a masked autoencoder",
        "",
        f"Images of {model.image_size[0]}x{model.image_size[1]} pixels, {model.channels} channels, patches of "
        f"{model.patch_size[0]}; from a {weights.origin}.{_normalization(weights)}",
        "",
        "    " + loading,
        "",
        *_history(config.checkpoint),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _timm_extras(weights: Weights) -> str:
    """Return the arguments of timm's `create_model` that build this model, a classifier's head included."""
    arguments = {key: value for key, value in timm_arguments(weights.model).items() if (key, value) != ("in_chans", 3)}
    norm = ""
    if arguments.pop("norm_layer", None):
        eps = weights.model.norm_eps
        norm = f", norm_layer=lambda width, **more: timm.layers.LayerNorm(width, eps={eps}, **more)"
    head = weights.encoder.get("head.weight")
    arguments["num_classes"] = 0 if head is None else len(head)
    if "fc_norm.weight" in weights.encoder or "cls_token" not in weights.encoder:
        arguments["global_pool"] = "avg" if "fc_norm.weight" in weights.encoder else ""
    return "".join(f", {key}={value!r}" for key, value in arguments.items()) + norm


def _normalization(weights: Weights) -> str:
    if weights.mean is None or weights.std is None:
        return ""
    return f" Images are normalized with mean {list(weights.mean)} and standard deviation {list(weights.std)}."


def _history(checkpoint: Path) -> list[str]:
    """Return lines about the data, schedule, cost and results of a pretraining run; empty for other checkpoints."""
    folder, epochs = run_and_epochs(checkpoint)
    if not folder.config.exists() or folder.info["command"] != "pretrain":
        return []
    run = load_file(PretrainConfig, folder.config)
    mean, std = run.data.statistics(run.model.channels)
    stages = ", ".join(f"{stage.share:g} at {stage.size}" for stage in run.curriculum.stages)
    target = run.model.target + (" of the full-size image" if run.model.target_from == "full" else "")
    lines = [
        f"- data: {run.data.source}, normalized with mean {list(mean)} and standard deviation {list(std)}",
        f"- schedule: {run.epochs} equivalent epochs, batch {run.batch_size}, base learning rate {run.optim.base_lr:g}",
        f"- curriculum: shares of {run.curriculum.pace}: {stages} pixels (of 224); target {target}, "
        f"mask ratio {run.model.mask_ratio:g}",
    ]
    if folder.summary.exists():
        facts = {key: value for key, value in read_facts(folder.summary).items() if isinstance(value, int | float)}
        knn, untrained = (format_or_dash(facts.get(key), "{:.4f}") for key in ("knn", "knn_untrained"))
        lines += [
            f"- training: {format_duration(facts.get('train_seconds'))}, {format_count(facts.get('images'))} images, "
            f"{format_flops(facts.get('flops'))} FLOPs",
            f"- result: loss {format_or_dash(facts.get('loss'), '{:.4f}')}; kNN accuracy {knn}, untrained {untrained}",
        ]
    measured = (row for row in Journal(folder.journal).rows() if "checkpoint" in row)
    newest = {row["event"]: row for row in measured if run_and_epochs(Path(row["checkpoint"]))[1] == epochs}
    for command in ("knn", "fewshot", "linprobe", "finetune"):
        if row := newest.get(command):
            accuracy = row["accuracy"]
            if "mean" in accuracy:
                text = format_percent(accuracy)
            else:  # few-shot: by number of labels
                text = ", ".join(f"{shots} labels {format_percent(each)}" for shots, each in accuracy.items())
            lines.append(f"- {command} on {row['source']}: accuracy {text}")
    return lines
