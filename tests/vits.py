"""Small ViTs of other libraries, at unusual shapes, and how their features are compared with ours."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.weights.build import build_autoencoder, build_encoder
from mae_curriculum.weights.read import read_weights

TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6, "img_size": 32}
HUGGING_FACE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 0.1,
}
MAE = HUGGING_FACE | {
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 8,
    "decoder_intermediate_size": 96,
    "hidden_act": "relu",
}
NOISE = torch.rand((2, 16), generator=torch.Generator().manual_seed(1))


def pictures(*size: int, channels: int = 3) -> Tensor:
    return torch.rand((2, channels, *size), generator=torch.Generator().manual_seed(0))


def randomize(model: Any) -> Any:
    """Give a model weights at which everything matters: biases, norms, positions, the sharpness of attention."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "decoder_pos_embed" not in name and "position_embeddings" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def timm_model(**changes: Any) -> Any:
    return randomize(timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", **TINY | changes))


def hugging_face(kind: str, **changes: Any) -> Any:
    """Return a model of transformers with learned positions; without transformers the test is skipped."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind.removesuffix('Model').removesuffix('ForImageClassification')}Config")
    model = randomize(getattr(transformers, kind)(config(**HUGGING_FACE | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_embeddings"):
                nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(3))
    return model


def encoder_of(path: Path, **hints: Any) -> tuple[MaskedAutoencoder, list[str]]:
    """Return a checkpoint's encoder, and what was said of it."""
    said: list[str] = []
    return build_encoder(read_weights(path, log=said.append, **hints), path), said


def check_tokens(path: Path, theirs: Tensor, images: Tensor, **hints: Any) -> list[str]:
    model, said = encoder_of(path, **hints)
    with torch.no_grad():
        torch.testing.assert_close(model.tokens(images), theirs, atol=2e-5, rtol=1e-4)
    assert model.image_size == images.shape[-2:]
    return said


VARIANTS: dict[str, dict[str, Any]] = {
    "wide": {"img_size": (16, 64)},
    "six_heads_of_192": {"embed_dim": 192, "depth": 12},
    "patch_4": {"patch_size": 4},
    "registers": {"reg_tokens": 4},
    "registers_without_positions": {"reg_tokens": 4, "no_embed_class": True},
    "no_class_token": {"class_token": False},
    "layer_scale": {"init_values": 0.1},
    "qk_norm": {"qk_norm": True},
    "pre_norm": {"pre_norm": True},
    "inner_norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "mlp_of_100": {"mlp_ratio": 100 / 48},
    "no_qkv_bias": {"qkv_bias": False},
    "no_final_norm": {"final_norm": False},
    "relu": {"act_layer": "relu"},
    "gray": {"in_chans": 1},
}


def vit_mae(folder: Path, **changes: Any) -> Any:
    """Save a ViTMAE of transformers with random weights, and return it; without transformers the test is skipped."""
    transformers = pytest.importorskip("transformers")
    model = randomize(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**MAE | changes)))
    model.save_pretrained(folder)
    return model


def loss_of(path: Path, **hints: Any) -> float:
    """Return a checkpoint's loss."""
    weights = read_weights(path, log=lambda _: None, **hints)
    with torch.no_grad():
        return float(build_autoencoder(weights, path)(pictures(32, 32), NOISE, weights.model.mask_ratio).mean())


def saved_encoder(folder: Path, **changes: Any) -> Path:
    path = folder / "vit.pth"
    torch.save(timm_model(**changes).state_dict(), path)
    return path
