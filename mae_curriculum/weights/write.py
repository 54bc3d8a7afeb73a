"""Write weights in the layouts of timm, facebookresearch/mae and Hugging Face."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from safetensors.torch import save
from torch import Tensor

from mae_curriculum.config import ConfigError, plain
from mae_curriculum.files import write_atomic
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.positions import sincos_positions
from mae_curriculum.weights.build import load_into_
from mae_curriculum.weights.infer import describe
from mae_curriculum.weights.names import MODEL_KEY, NORMALIZATION_KEY, from_hugging_face
from mae_curriculum.weights.read import Weights
from mae_curriculum.weights.stated import Values, find_activation


def describe_weights(model: ModelConfig | None, mean: Values | None, std: Values | None) -> dict[str, str]:
    """Return metadata that say how to use weights, as far as it is known.

    model      the plain ViT that they belong to, None for other networks.
    mean, std  of each channel that images are normalized with, on a scale of 0 to 1.
    """
    metadata = {} if model is None else {MODEL_KEY: json.dumps(plain(model))}
    if mean is not None and std is not None:
        metadata[NORMALIZATION_KEY] = json.dumps([mean, std])
    return metadata


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with metadata."""
    content = save({key: value.cpu().contiguous() for key, value in tensors.items()}, metadata)
    write_atomic(path, content)


def mae_layout(model: MaskedAutoencoder, weights: Weights) -> dict[str, Tensor]:
    """Return the weights with the names of facebookresearch/mae, which saves the decoder's positions too.

    Raises  ConfigError for an autoencoder that facebookresearch/mae cannot build.
    """
    functions = {_function(model.encoder.blocks[0]), _function(model.decoder.blocks[0])}
    reasons = {
        "a target of HOG": weights.model.target == "hog",
        "activations but GELU, an epsilon but 1e-6, queries without bias": functions != {(1e-6, "gelu", True)},
    }
    _refuse_lacking(model, weights, "facebookresearch/mae", reasons)
    return _with_table(model, weights)


def _with_table(model: MaskedAutoencoder, weights: Weights) -> dict[str, Tensor]:
    """Return the weights of encoder and decoder, and the decoder's positions."""
    if "decoder_pos_embed" in weights.decoder:
        return {**weights.encoder, **weights.decoder}
    width = weights.decoder["decoder_embed.weight"].shape[0]
    patches = sincos_positions(model.full_grid, model.full_grid, width, torch.device("cpu"))
    table = torch.cat([torch.zeros(1, width), patches])[None]
    return {**weights.encoder, **weights.decoder, "decoder_pos_embed": table}


def hugging_face(model: MaskedAutoencoder, weights: Weights, *, decoder: bool) -> Any:
    """Build transformers' model with these weights; raises ConfigError for a ViT that transformers lacks."""
    import transformers

    config, function = weights.model, _function(model.encoder.blocks[0])
    reasons = {
        "images that are not square": model.image_size[0] != model.image_size[1],
        "this activation": function[1] is None,
    }
    if decoder:
        differs = _function(model.decoder.blocks[0]) != function
        reasons["a target of HOG"] = config.target == "hog"
        reasons["a decoder whose norms, activation or biases are not the encoder's"] = differs
    _refuse_lacking(model, weights, "transformers", reasons)
    theirs: Any
    if decoder:
        theirs = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(
                **_encoder_settings(model),
                decoder_hidden_size=model.shape.decoder.width,
                decoder_num_hidden_layers=model.shape.decoder.depth,
                decoder_num_attention_heads=model.shape.decoder.heads,
                decoder_intermediate_size=model.shape.decoder.mlp_width,
                mask_ratio=config.mask_ratio,
                norm_pix_loss=config.target == "norm_pixels",
            )
        )
    else:
        theirs = transformers.ViTModel(transformers.ViTConfig(**_encoder_settings(model)), add_pooling_layer=False)
    ours = _with_table(model, weights) if decoder else weights.encoder
    load_into_(theirs, {key: _value(ours, from_hugging_face(key)) for key in theirs.state_dict()}, "the encoder")
    return theirs


def _encoder_settings(model: MaskedAutoencoder) -> dict[str, Any]:
    """Return the settings of transformers' ViT that describe our encoder."""
    block = model.encoder.blocks[0]
    eps, activation, qkv_bias = _function(block)
    return {
        "hidden_size": model.encoder.embed_dim,
        "num_hidden_layers": len(model.encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "image_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "num_channels": model.channels,
        "layer_norm_eps": eps,
        "hidden_act": activation,
        "qkv_bias": qkv_bias,
        "hidden_dropout_prob": 0.0,
    }


def _refuse_lacking(model: MaskedAutoencoder, weights: Weights, library: str, reasons: dict[str, bool]) -> None:
    """Raise ConfigError that names what another library lacks of this model; `reasons` are those of this library."""
    encoder, found = model.encoder, describe(weights.encoder)
    all_reasons = reasons | {
        "encoders without a class token, or with registers": encoder.cls_token is None or encoder.num_prefix_tokens > 1,
        "class tokens without a position": encoder.no_embed_class,
        "layer scale": found["init_values"] is not None,
        "norms of queries and keys": found["qk_norm"],
        "norms inside attention and MLP": found["scale_attn_norm"] or found["scale_mlp_norm"],
        "norms before the blocks": found["pre_norm"],
        "layers without bias": not found["proj_bias"],
        "encoders that do not end in a norm of all tokens": "norm.weight" not in weights.encoder,
    }
    lacking = [reason for reason, applies in all_reasons.items() if applies]
    if lacking:
        raise ConfigError(f"{library} lacks {', '.join(lacking)}; choose another --format")


def _function(block: Any) -> tuple[float, str | None, bool]:
    """Return the epsilon and activation of a block of timm, and whether queries, keys and values have a bias."""
    return block.norm1.eps, find_activation(block), block.attn.qkv.bias is not None


def save_preprocessor(folder: Path, weights: Weights, image_size: tuple[int, int]) -> None:
    """Write transformers' settings of the images that an encoder takes, if their normalization is known."""
    import transformers

    if weights.mean is None or weights.std is None:
        return
    height, width = image_size
    processor = transformers.ViTImageProcessor(
        size={"height": height, "width": width},
        resample=Resampling.BICUBIC.value,
        image_mean=list(weights.mean),
        image_std=list(weights.std),
    )
    processor.save_pretrained(folder)


def _value(ours: dict[str, Tensor], key: str) -> Tensor:
    """Return a weight by its name; q, k and v are each a third of the joint matrix."""
    for part, letter in enumerate("qkv"):
        if f".attn.{letter}." in key:
            return ours[key.replace(f".attn.{letter}.", ".attn.qkv.")].chunk(3)[part].clone()
    return ours[key]
