"""Export weights for timm, Hugging Face or facebookresearch/mae, with a model card that says how to load them."""

from pathlib import Path

import torch

from mae_curriculum.commands.config import ExportConfig
from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.evaluation.results import format_percent
from mae_curriculum.model.config import TIMM_NAMES, ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import check_checkpoint, read_facts, run_and_epochs
from mae_curriculum.terminal import format_count, format_duration, format_flops, format_or_dash, printable
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.weights.build import load_into_
from mae_curriculum.weights.read import Weights, read_weights
from mae_curriculum.weights.write import hugging_face, mae_layout, save_weights


def export(config: ExportConfig) -> int:
    """Write the weights and their model card; returns the exit code."""
    check_checkpoint(config.checkpoint)
    weights = read_weights(config.checkpoint, heads=config.heads)
    model = build_model(weights.model, seed=0)
    if config.format in ("hf_mae", "mae") and not weights.decoder:
        raise ConfigError(f"format {config.format} needs a decoder, {config.checkpoint} has none; choose timm or hf")
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
    print(printable(f"{config.out}, and {card}"))
    return 0


def model_card(config: ExportConfig, weights: Weights, model: MaskedAutoencoder) -> str:
    """Return a Markdown text about the weights: what they are, how to load them, how they were trained."""
    default = ModelConfig()
    extras = ""
    for field, timm_name in TIMM_NAMES.items():
        value = getattr(weights.model, field)
        if value != getattr(default, field):
            extras += f", {timm_name}={value!r}"
    name = config.out.name
    loading = {
        "timm": f'timm.create_model("{weights.model.name}", num_classes=0, checkpoint_path="{name}"{extras})',
        "hf": f'transformers.ViTModel.from_pretrained("{name}", add_pooling_layer=False)',
        "hf_mae": f'transformers.ViTMAEForPreTraining.from_pretrained("{name}")',
        "mae": f'model.load_state_dict(torch.load("{name}")["model"])  # a model of models_mae.py',
    }[config.format]
    lines = [
        f"# {weights.model.name}, pretrained as a masked autoencoder",
        "",
        f"Images of {model.image_size[0]}x{model.image_size[1]} pixels, {model.channels} channels, patches of "
        f"{model.patch_size[0]}; from a {weights.origin}.",
        "",
        "    " + loading,
        "",
        *_history(config.checkpoint),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _history(checkpoint: Path) -> list[str]:
    """Return lines about the data, schedule, cost and results of a pretraining run; empty for other checkpoints."""
    folder, epochs = run_and_epochs(checkpoint)
    if not folder.config.exists() or folder.info["command"] != "pretrain":
        return []
    run = load_file(PretrainConfig, folder.config)
    mean, std = run.data.statistics(run.model.channels)
    stages = ", ".join(f"{stage.share:g} at {stage.size}" for stage in run.curriculum.stages)
    lines = [
        f"- data: {run.data.source}, normalized with mean {list(mean)} and standard deviation {list(std)}",
        f"- schedule: {run.epochs} equivalent epochs, batch {run.batch_size}, base learning rate {run.optim.base_lr:g}",
        f"- curriculum: shares of {run.curriculum.pace}: {stages} pixels (of 224); target {run.model.target}, "
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
