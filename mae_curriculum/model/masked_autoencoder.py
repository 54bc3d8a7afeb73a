"""The masked autoencoder: a timm ViT as encoder, random masking, and MAE's decoder.

The encoder's weights have timm's names under `encoder.`. Only visible patches are embedded, and only masked ones are
predicted. No token is put back into image order, as attention does not depend on it and positions are added by index.

Axes    b images, c channels, h w pixels, n patches, k visible patches, m masked patches, d width.
Source  arXiv:2111.06377.
"""

import difflib
import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import View
from mae_curriculum.model.config import TIMM_NAMES, ModelConfig
from mae_curriculum.model.decoder import Decoder
from mae_curriculum.model.masking import patchify, split_by_noise, take_patches
from mae_curriculum.model.positions import resample_positions, sincos_positions
from mae_curriculum.model.shape import EncoderShape, model_shape
from mae_curriculum.model.targets import make_target

DECODER_NORM_EPS = 1e-6
"""Epsilon of the decoder's layer norms, as in MAE."""


class MaskedAutoencoder(nn.Module):
    """Predict the masked patches of an image from the visible ones."""

    def __init__(self, config: ModelConfig) -> None:
        """Build encoder and decoder and initialize them as MAE does, from torch's global random state.

        Raises  ConfigError for a name or a shape that is not possible.
        """
        super().__init__()
        self.target, self.target_from = config.target, config.target_from
        self.encoder = build_timm(config)
        encoder = measure_encoder(self.encoder)
        self.shape = model_shape(config, encoder)
        self.class_tokens = config.class_tokens
        self.patch_size, self.image_size, self.channels = encoder.patch_size, encoder.image_size, encoder.channels
        self.full_grid = self.grid(self.image_size)
        self.learned_positions = False
        """Whether the encoder's positions are those of its weights instead of the fixed sine-cosine table."""
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.shape.decoder.width))
        norm_eps, options = config.norm_eps or DECODER_NORM_EPS, config.decoder_options
        try:
            self.decoder = Decoder(self.shape.decoder, full_grid=self.full_grid, norm_eps=norm_eps, options=options)
        except (KeyError, TypeError) as error:  # what timm's block raises for arguments that it does not take
            raise ConfigError(f"model.decoder_options: timm's Block does not take {options}: {error}") from error
        self._initialize_()

    def forward(self, images: Tensor, noise: Tensor, mask_ratio: float, full: Tensor | None = None) -> Tensor:
        """Hide the patches of highest noise, predict them or `decode_share` of them, and return the error.

        images      (b, c, h, w), normalized; h and w multiples of the patch size, up to any size.
        noise       (b, n), any values: the visible patches are those of lowest noise; with `mask_block`, of each block.
        mask_ratio  share of the patches that are hidden, 0 to 1; at least one is visible and at least one hidden.
        full        the same images at full size; None if that is the size of `images`.
        Returns     (b,) float32: mean squared error over the values of an image's predicted patches.
        """
        height, width = images.shape[-2:]
        grid, view = self.grid((height, width)), View((height, width), mask_ratio)
        keep, predicted_count = self.shape.visible_count(view), self.shape.predicted_count(view)
        ids_keep, ids_mask = split_by_noise(noise, keep, grid=grid, block=self.shape.mask_block)
        ids_mask = ids_mask[:, :predicted_count]  # the others are left out
        tokens = self.encode(take_patches(patchify(images, self.patch_size), ids_keep), grid, ids_keep)
        predicted = self.decoder(tokens, self.mask_token, grid, ids_keep, ids_mask)
        error: Tensor = predicted.float() - self.make_target(images, ids_mask, full)
        return error.square().mean(dim=(1, 2))

    def make_target(self, images: Tensor, ids: Tensor, full: Tensor | None = None) -> Tensor:
        """Return the target of the patches (b, m) of images (b, c, h, w): (b, m, d); `full` as in `forward`."""
        source = images if full is None or self.target_from == "crop" else full
        grid = self.grid(images.shape[-2:])
        return make_target(source, ids, grid=grid, patch_size=self.patch_size, kind=self.target)

    def encode(self, patches: Tensor, grid: tuple[int, int], ids: Tensor | None = None) -> Tensor:
        """Encode patches of images with a given grid.

        patches  (b, k, p*q*c), as `patchify` orders them.
        ids      (b, k) the patches' numbers in the grid, row by row; None if all are there, in order.
        Returns  (b, prefix + k, d): prefix tokens (class, registers), then the patches in their order.
        """
        encoded: Tensor = self.encoder.norm(self.encoder.blocks(self._embed(patches, grid, ids)))
        return encoded

    def _embed(self, patches: Tensor, grid: tuple[int, int], ids: Tensor | None) -> Tensor:
        """Return the tokens that enter the first block, as `encode` orders them."""
        encoder = self.encoder
        projection = encoder.patch_embed.proj
        # the order of the convolution's weights: reordering these instead would give them strided gradients
        values = rearrange(patches, "b k (p q c) -> b k (c p q)", p=self.patch_size[0], q=self.patch_size[1])
        tokens = encoder.patch_embed.norm(nn.functional.linear(values, projection.weight.flatten(1), projection.bias))
        # positions are float32, so inside autocast the tokens are from here on, as in MAE
        positions = self._positions(grid, tokens.device)
        tokens = tokens + (positions if ids is None else positions[ids])
        given = [token[0] for token in (encoder.cls_token, encoder.reg_token) if token is not None]
        if given:
            prefix = torch.cat(given)
            if self.learned_positions:
                own = encoder.pos_embed[0, : encoder.pos_embed.shape[1] - math.prod(self.full_grid)]
                prefix = prefix + own if len(own) else prefix
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        embedded: Tensor = encoder.norm_pre(tokens)
        return embedded

    @property
    def pools(self) -> tuple[str, ...]:
        """Poolings that give one vector per image: (first) class token, mean of the patches, mean of class tokens."""
        if self.encoder.cls_token is None:
            return ("avg",)
        return ("token", "avg", "class_avg") if self.class_tokens > 1 else ("token", "avg")

    def tokens(self, images: Tensor) -> Tensor:
        """Return the tokens of whole images, nothing masked: (b, c, h, w) -> (b, prefix + n, d)."""
        return self.encode(patchify(images, self.patch_size), self.grid(images.shape[-2:]))

    def features(self, images: Tensor) -> Tensor:
        """Return the features of whole images in each of the `pools`, nothing masked: (b, c, h, w) -> (b, p, d)."""
        return self._pool(self.tokens(images))

    def features_by_block(self, images: Tensor, blocks: Sequence[int]) -> Tensor:
        """Return the features of whole images after each of some blocks, in one pass: (b, c, h, w) -> (b, k, p, d).

        blocks  numbers of blocks, counted from 0, in ascending order; the final norm follows each.
        """
        tokens = self._embed(patchify(images, self.patch_size), self.grid(images.shape[-2:]), None)
        features = []
        for number, block in enumerate(self.encoder.blocks[: blocks[-1] + 1]):
            tokens = block(tokens)
            if number in blocks:
                features.append(self._pool(self.encoder.norm(tokens)))
        return torch.stack(features, dim=1)

    def _pool(self, tokens: Tensor) -> Tensor:
        """Return tokens (b, prefix + n, d) in each of the `pools`, (b, p, d)."""
        pooled = {
            "token": tokens[:, 0],
            "avg": tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1),
            "class_avg": tokens[:, : self.class_tokens].mean(dim=1),
        }
        features: Tensor = self.encoder.fc_norm(torch.stack([pooled[pool] for pool in self.pools], dim=1))
        return features

    def grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Return the patches per column and per row of an image of this size (height, width)."""
        return self.shape.grid(size)

    def _positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return the positional embedding of a grid's patches, (n, d)."""
        if not self.learned_positions:
            return sincos_positions(grid, self.full_grid, self.encoder.embed_dim, device)
        patches = self.encoder.pos_embed[0, -math.prod(self.full_grid) :]
        return resample_positions(patches, self.full_grid, grid)

    def _initialize_(self) -> None:
        """Initialize as MAE does: linear layers and patch embedding Xavier-uniform, tokens N(0, 0.02)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.view(self.encoder.embed_dim, -1))
        for token in (self.encoder.cls_token, self.encoder.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        if self.encoder.pos_embed is not None:  # kept so that the weights are complete under timm's names
            table = torch.zeros_like(self.encoder.pos_embed)
            patches = sincos_positions(self.full_grid, self.full_grid, self.encoder.embed_dim, table.device)
            table[0, -len(patches) :] = patches
            self.encoder.pos_embed = nn.Parameter(table, requires_grad=False)


def build_model(config: ModelConfig, *, seed: int) -> MaskedAutoencoder:
    """Return a model whose weights depend on config and seed alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(config)


def timm_arguments(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments that make timm's `create_model` build the encoder of this configuration."""
    given = {timms: getattr(config, ours) for ours, timms in TIMM_NAMES.items() if getattr(config, ours) is not None}
    if config.class_tokens > 1:
        given["reg_tokens"] = config.class_tokens - 1
    if config.norm_eps is not None:
        given["norm_layer"] = partial(nn.LayerNorm, eps=config.norm_eps)
    return config.options | given


def build_timm(config: ModelConfig) -> Any:
    """Return timm's ViT without a head; typed Any because timm's attributes are typed loosely."""
    if config.name is None:
        raise ConfigError("model.name: choose a plain ViT in timm, such as vit_base_patch16_224")
    if not timm.models.is_model_in_modules(config.name, ["vision_transformer"]):
        near = ", ".join(similar_names(config.name, timm.list_models(module="vision_transformer")))
        hint = f"similar: {near}" if near else "only these can be masked; python -m finetune trains others"
        raise ConfigError(f"model.name: timm has no plain ViT named '{config.name}'; {hint}")
    given = {**timm_arguments(config), "num_classes": 0, "global_pool": "", "weight_init": "skip"}
    try:
        encoder: Any = timm.create_model(config.name, **given)
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:  # for impossible arguments
        raise ConfigError(f"model: timm cannot build {config.name} with {given}: {error}") from error
    if not all(hasattr(block, "attn") for block in encoder.blocks):
        raise ConfigError(
            f"model.name: the blocks of '{config.name}' are not those of a plain ViT; try vit_base_patch16_224"
        )
    return encoder


def similar_names(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three of the known names that are most like a name; `vit_b16` and ViT-B/16 are vit_base_patch16."""
    short = re.search(r"(?<![a-z])vit\W*_?([a-z])[a-z]*\D*(\d*)", name.lower())
    sizes = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
    if short and short[1] in sizes:
        start = f"vit_{sizes[short[1]]}_patch{short[2]}"
        found = [each for each in known if each.startswith(start)]
        if found:
            return sorted(found, key=lambda each: (not each.endswith("_224"), len(each)))[:3]
    return difflib.get_close_matches(name, known, n=3)


def measure_encoder(encoder: Any) -> EncoderShape:
    """Return the shape of a timm ViT."""
    block, patch_embed = encoder.blocks[0], encoder.patch_embed
    linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
    fixed = 0 if encoder.pos_embed is None else encoder.pos_embed.numel()
    return EncoderShape(
        image_size=patch_embed.img_size,
        patch_size=patch_embed.patch_size,
        channels=patch_embed.proj.in_channels,
        width=encoder.embed_dim,
        depth=len(encoder.blocks),
        heads=block.attn.num_heads,
        prefix_tokens=encoder.num_prefix_tokens,
        block_weights=sum(module.weight.numel() for module in linear),
        parameters=sum(parameter.numel() for parameter in encoder.parameters()) - fixed,
        fixed_parameters=fixed,
    )
