"""Weight names of timm, this project and Hugging Face; fingerprints and metadata of weights."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

MODEL_KEY = "mae_curriculum.model.masked_autoencoder"
"""Metadata key of a safetensors file that holds the `ModelConfig` of its weights as JSON."""

VIT_KEY = re.compile(
    r"(cls_token|reg_token|pos_embed|patch_embed\.proj\.\w+|(norm|fc_norm|norm_pre|head)\.\w+"
    r"|blocks\.\d+\.((norm[12]|attn\.(qkv|proj|q_norm|k_norm)|mlp\.fc[12])\.\w+|ls[12]\.gamma))"
)

DECODER_KEY = re.compile(
    r"(mask_token|decoder_(embed|norm|pred)\.\w+"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.\w+)"
)

_HUGGING_FACE = [  # as on disk, and as in memory in transformers 5; the rules for layers serve encoder and decoder
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


def from_hugging_face(key: str) -> str:
    """Convert a key of Hugging Face's ViT or ViTMAE to this project's name, with q, k and v still separate."""
    for pattern, name in _HUGGING_FACE:
        key = re.sub(pattern, name, key)
    return key


def join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `….attn.q/k/v.weight` and `.bias` into timm's `….attn.qkv`; an incomplete triple is dropped."""
    joined = {key: value for key, value in state.items() if not re.search(r"\.attn\.[qkv]\.", key)}
    for key in state:
        parts = [key.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if ".attn.q." in key and all(part in state for part in parts):
            joined[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([state[part] for part in parts])
    return joined


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
