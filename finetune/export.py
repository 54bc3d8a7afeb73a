"""Export a classifier for timm and transformers or as ONNX, with a model card that says how to use it."""

from pathlib import Path
from typing import Any

import timm
import torch

from finetune.config import ExportConfig
from finetune.saved import Description, as_metadata, as_timm, load_classifier
from mae_curriculum.config import ConfigError
from mae_curriculum.files import write_json
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.terminal import printable, side
from mae_curriculum.weights.write import save_weights

LOADING = {
    "timm": """
    timm.create_model("local-dir:{name}", pretrained=True)
    transformers.AutoModelForImageClassification.from_pretrained("{name}")
""",
    "onnx": """
    onnxruntime.InferenceSession("{name}").run(["logits"], {{"images": images}})
""",
}
"""How to load an export of each format."""

ONNX_WEIGHTS = ".data"
"""What torch appends to the name of an ONNX file for that of large weights."""

ONNX_BYTES = 1_900_000_000
"""Size of weights above which they do not fit into an ONNX file, but are beside it; files are limited to 2 GB."""


def export(config: ExportConfig) -> int:
    """Write the classifier and its model card; returns the exit code."""
    check_checkpoint(config.checkpoint)
    net, description = load_classifier(config.checkpoint)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if config.format == "timm":
        write_timm(net, description, config.out)
    else:
        write_onnx(net, description, config.out)
    card = config.out / "README.md" if config.out.is_dir() else config.out.with_suffix(".md")
    card.write_text(model_card(net, description, config))
    beside = config.out.with_name(f"{config.out.name}{ONNX_WEIGHTS}")
    more = f", {beside}" if config.format == "onnx" and beside.exists() else ""
    print(printable(f"{config.out}{more}, and {card}"))
    return 0


def write_timm(net: Any, description: Description, folder: Path) -> None:
    """Write a folder that timm and transformers load; raises ConfigError for what timm's settings cannot state."""
    reasons = {
        f"norms with an epsilon of {description.norm_eps}": description.norm_eps is not None,
        "attentive probes, whose attention has no norm": description.attentive,
        "the mean of several class tokens": description.class_tokens > 1,
    }
    lacking = [reason for reason, applies in reasons.items() if applies]
    if lacking:
        raise ConfigError(f"timm's model folders cannot state {', '.join(lacking)}; choose --format onnx")
    folder.mkdir()
    save_weights(folder / "model.safetensors", net.state_dict(), {"format": "pt"} | as_metadata(description))
    write_json(folder / "config.json", as_timm(description, net))


def write_onnx(net: Any, description: Description, path: Path) -> None:
    """Write an ONNX file, which maps normalized images of any number to logits; large weights are in `PATH.data`."""
    images = torch.zeros(2, description.channels, *description.image_size)
    path.with_name(f"{path.name}{ONNX_WEIGHTS}").unlink(missing_ok=True)  # of an earlier export
    size = sum(weights.nbytes for weights in net.state_dict().values())
    torch.onnx.export(
        net,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
        external_data=size > ONNX_BYTES,
    )


def model_card(net: Any, description: Description, config: ExportConfig) -> str:
    """Return a Markdown text: what the classifier takes and returns, and how to load it."""
    height, width = description.image_size
    names = ", ".join(description.classes)
    module = timm.models.model_entrypoint(description.architecture).__module__
    registers = "" if module.startswith("timm.") or config.format != "timm" else f"\n    import {module}  # for timm"
    return f"""# {description.architecture}, a classifier of {len(description.classes)} classes
{registers}{LOADING[config.format].format(name=config.out.name)}
- input: images (batch, {description.channels}, {height}, {width}), scaled to 0..1 and normalized with mean
  {list(description.mean)} and standard deviation {list(description.std)}
- resize and crop, as in evaluation: the largest center crop of {side(description.image_size)}'s aspect ratio, of it
  {description.crop:g} of each side, resized to {side(description.image_size)} pixels (bicubic, antialiased)
- pooling: {pooling(net, description)}
- output: logits (batch, {len(description.classes)}); their softmax are the probabilities
- classes, in order: {names}
"""


def pooling(net: Any, description: Description) -> str:
    """Return how a network pools its features."""
    if description.attentive:
        return f"attention of {'several learned queries' if description.ep else 'a learned query'} over the patches"
    if description.class_tokens > 1:
        return f"mean of the {description.class_tokens} class tokens"
    own = getattr(net, "global_pool", None)
    kinds = [module.pool_type for module in net.modules() if isinstance(getattr(module, "pool_type", None), str)]
    return own if isinstance(own, str) else kinds[0] if kinds else "that of the architecture"
