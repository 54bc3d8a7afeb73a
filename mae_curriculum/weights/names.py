"""Weight names of timm, this project and Hugging Face; fingerprints and metadata of weights."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

MODEL_KEY = "mae_curriculum.model.masked_autoencoder"
"""Metadata key of a safetensors file that holds the `ModelConfig` of its weights as JSON."""

NORMALIZATION_KEY = "mae_curriculum.data.normalization"
"""Metadata key for the mean and the standard deviation that images are normalized with, as JSON: [mean, std]."""

VIT_KEY = re.compile(
    r"(cls_token|reg_token|pos_embed|patch_embed\.proj\.\w+|(norm|fc_norm|norm_pre|head)\.\w+"
    r"|blocks\.\d+\.((norm[12]|attn\.(qkv|proj|q_norm|k_norm|norm)|mlp\.(fc[12]|norm))\.\w+|ls[12]\.gamma))"
)

DECODER_KEY = re.compile(
    r"(mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.\w+"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.\w+)"
)

VIT_PARTS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
"""Keys that every plain ViT has."""

DECODER_PARTS = ("decoder_embed.weight", "decoder_blocks.0.mlp.fc1.weight", "decoder_pred.weight", "mask_token")
"""Keys that every decoder has."""

DIMENSIONS = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "cls_token": 3,
    "reg_token": 3,
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.attn.q_norm.weight": 1,
    "decoder_embed.weight": 2,
    "decoder_blocks.0.mlp.fc1.weight": 2,
    "decoder_pos_embed": 3,
}
"""Number of dimensions of tensors whose shape shows that of the model."""

UNUSED_KEY = re.compile(r"(mask_token|(head|head_drop|pooler|attn_pool|pre_logits)\..*)")
"""Parts of a ViT that its features do not need: heads that are no linear layer, the token of masked patches."""

HUGGING_FACE_PATCHES = "embeddings.patch_embeddings.projection.weight"
"""A key of every ViT of transformers."""

_LAYERS_OF_HUGGING_FACE = [  # as on disk, and as in memory in transformers 5; of encoder and decoder
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
]

_HUGGING_FACE = [
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"^layernorm\.", "norm."),
    *_LAYERS_OF_HUGGING_FACE,
]

_BESIDE_HUGGING_FACE = [
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),  # transformers 5 saves a classifier of ViTMSN so
    (r"^decoder\.decoder_(layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\2."),
    (r"^decoder\.(mask_token|decoder_)", r"\1"),
    (r"^classifier\.", "head."),
    *_LAYERS_OF_HUGGING_FACE,
]

_TIMM = [  # and what the code of DINOv2 and of DeiT III calls otherwise
    (r"^register_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
]

_BESIDE_OURS = [(r"^decoder\.", "decoder_")]


Log = Callable[[str], object]
"""What takes a line of text."""


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return a hash of weights and their names, 16 hexadecimal digits."""
    state = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        state.update(key.encode())
        content: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        state.update(content)
    return state.hexdigest()[:16]


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    return metadata


def rename(own: dict[str, Tensor], beside: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename the tensors of a network, and those beside it, to timm's names and those of facebookresearch/mae."""
    is_hugging_face = HUGGING_FACE_PATCHES in own
    rules = (_HUGGING_FACE, _BESIDE_HUGGING_FACE) if is_hugging_face else (_TIMM, _BESIDE_OURS)
    first, second = (
        _join_qkv({_substitute(key, part): value for key, value in tensors.items()})
        for tensors, part in zip((own, beside), rules, strict=True)
    )
    return first, second


def from_hugging_face(key: str) -> str:
    """Convert a key of a ViT or ViTMAE of transformers to this project's name, with q, k and v still separate."""
    rules = _BESIDE_HUGGING_FACE if key.startswith("decoder.") else _HUGGING_FACE
    return _substitute(key.removeprefix("vit."), rules)


def _substitute(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `….attn.q/k/v.weight` and `.bias` into timm's `….attn.qkv`; an incomplete triple stays as it is."""
    joined = dict(state)
    for key in state:
        parts = [key.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if ".attn.q." in key and all(part in state for part in parts):
            joined[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def count_blocks(weights: dict[str, Tensor], blocks: str) -> int:
    """Return how many blocks weights belong to, `blocks` or `decoder_blocks`."""
    return len({key.split(".")[1] for key in weights if key.startswith(f"{blocks}.")})


def format_keys(keys: Iterable[str]) -> str:
    """Format keys for a message, at most ten of them."""
    ordered = sorted(keys)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return ", ".join(ordered[:10]) + more


def decoder_from_mae(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a decoder's weights under this project's names, given those of facebookresearch/mae."""
    return {key.replace("decoder_", "decoder.", 1): value for key, value in weights.items()}


def decoder_to_mae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's weights of a model's state under the names of facebookresearch/mae."""
    names = [key for key in state if key.startswith("decoder.") or key == "mask_token"]
    return {key.replace("decoder.", "decoder_", 1): state[key] for key in names}
