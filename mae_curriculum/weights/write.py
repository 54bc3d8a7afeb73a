"""Write weights in the layouts of timm, facebookresearch/mae and Hugging Face."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mae_curriculum.config import ConfigError, plain
from mae_curriculum.files import write_atomic
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.positions import sincos_positions
from mae_curriculum.weights.build import load_into_
from mae_curriculum.weights.names import MODEL_KEY, from_hugging_face
from mae_curriculum.weights.read import Weights


def save_weights(path: Path, tensors: dict[str, Tensor], model: ModelConfig | None, metadata: dict[str, str]) -> None:
    """Write a safetensors file with metadata; `model` is the plain ViT that it holds, None for other networks."""
    if model is not None:
        metadata = {MODEL_KEY: json.dumps(plain(model)), **metadata}
    content = save({key: value.cpu().contiguous() for key, value in tensors.items()}, metadata)
    write_atomic(path, content)


def mae_layout(model: MaskedAutoencoder, weights: Weights) -> dict[str, Tensor]:
    """Return the weights with the names of facebookresearch/mae, which saves the decoder's positions too."""
    width = weights.decoder["decoder_embed.weight"].shape[0]
    patches = sincos_positions(model.full_grid, model.full_grid, width, torch.device("cpu"))
    table = torch.cat([torch.zeros(1, width), patches])[None]
    return {**weights.encoder, **weights.decoder, "decoder_pos_embed": table}


def hugging_face(model: MaskedAutoencoder, weights: Weights, *, decoder: bool) -> Any:
    """Build transformers' model with these weights; raises ConfigError for a ViT that transformers lacks."""
    import transformers

    encoder, config = model.encoder, weights.model
    if model.image_size[0] != model.image_size[1] or encoder.num_prefix_tokens != 1 or encoder.cls_token is None:
        raise ConfigError("transformers' ViT needs square images and one class token; use --format timm")
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
    """Return a weight by its name; q, k and v are each a third of the joint matrix."""
    for part, letter in enumerate("qkv"):
        if f".attn.{letter}." in key:
            return ours[key.replace(f".attn.{letter}.", ".attn.qkv.")].chunk(3)[part].clone()
    return ours[key]
