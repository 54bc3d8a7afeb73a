"""The masked autoencoder: a timm ViT as encoder, random masking, and MAE's decoder.

The encoder's weights bear timm's names under `encoder.`. No arithmetic is spent on what nobody uses: only visible
patches are embedded, only masked ones predicted, and no token is put back into image order, since attention does not
mind the order and positions are added by index.

Axes    b images, c channels, h w pixels, n patches, k visible patches, m masked patches, d width.
Source  arXiv:2111.06377.
"""

import difflib
import math
from functools import partial
from typing import Any

import timm
import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mae_curriculum.config import ConfigError
from mae_curriculum.model.config import TIMM_NAMES, ModelConfig, check_width
from mae_curriculum.model.masking import split_by_noise
from mae_curriculum.model.positions import resample_positions, sincos_positions
from mae_curriculum.model.targets import patch_target

_layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)  # the epsilon of timm's ViT and of MAE


class MaskedAutoencoder(nn.Module):
    """Predict the masked patches of an image from the visible ones."""

    def __init__(self, config: ModelConfig) -> None:
        """Build encoder and decoder and initialise them as MAE does, from torch's global random state.

        Raises  ConfigError for a name or a shape that cannot be.
        """
        super().__init__()
        self.mask_ratio, self.target = config.mask_ratio, config.target
        self.encoder = _build_encoder(config)
        self.patch_size: tuple[int, int] = self.encoder.patch_embed.patch_size
        self.image_size: tuple[int, int] = self.encoder.patch_embed.img_size
        self.full_grid: tuple[int, int] = self.encoder.patch_embed.grid_size
        self.channels = config.channels
        self.learned_positions = False
        """Whether the encoder's positions are those of its weights instead of the fixed sine-cosine table."""
        width, decoder_width = self.encoder.embed_dim, config.decoder_width
        patch_values = self.patch_size[0] * self.patch_size[1] * config.channels
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_blocks = nn.Sequential(
            *(
                Block(decoder_width, config.decoder_heads, qkv_bias=True, norm_layer=_layer_norm)
                for _ in range(config.decoder_depth)
            )
        )
        self.decoder_norm = _layer_norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch_values)
        self._initialize_()

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Hide the patches of highest noise, predict them, and measure the error.

        images   (b, c, h, w), normalised; h and w multiples of the patch, up to any size.
        noise    (b, n), any values: the visible patches are those of lowest noise.
        Returns  (b,) float32: mean squared error over the values of an image's masked patches.
        """
        grid = self.grid(images.shape[-2:])
        patches = patchify(images, self.patch_size)
        ids_keep, ids_mask = split_by_noise(noise, self.visible_count(grid))
        tokens = self.encode(_take(patches, ids_keep), grid, ids_keep)
        predicted = self.decode(tokens, grid, ids_keep, ids_mask)
        error = predicted.float() - patch_target(_take(patches, ids_mask), self.target)
        return error.square().mean(dim=(1, 2))

    def encode(self, patches: Tensor, grid: tuple[int, int], ids: Tensor | None = None) -> Tensor:
        """Encode patches of images cut into `grid`.

        patches  (b, k, p*q*c), as `patchify` orders them.
        ids      (b, k) the places of the patches in the grid, row by row; None if all are there in order.
        Returns  (b, prefix + k, d): prefix tokens (class, registers), then the patches in their order.
        """
        encoder = self.encoder
        projection = encoder.patch_embed.proj
        # the order of the convolution's weights: reordering these instead would give them strided gradients
        values = rearrange(patches, "b k (p q c) -> b k (c p q)", p=self.patch_size[0], q=self.patch_size[1])
        tokens = encoder.patch_embed.norm(nn.functional.linear(values, projection.weight.flatten(1), projection.bias))
        # positions are float32, so inside autocast the tokens are from here on, as in MAE
        tokens = tokens + self._positions(grid, encoder.embed_dim, ids, device=tokens.device, learned=True)
        given = [token[0] for token in (encoder.cls_token, encoder.reg_token) if token is not None]
        if given:
            prefix = torch.cat(given)
            if self.learned_positions:
                own = encoder.pos_embed[0, : encoder.pos_embed.shape[1] - math.prod(self.full_grid)]
                prefix = prefix + own if len(own) else prefix
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        encoded: Tensor = encoder.norm(encoder.blocks(encoder.norm_pre(tokens)))
        return encoded

    def decode(self, tokens: Tensor, grid: tuple[int, int], ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Predict the masked patches.

        tokens    (b, prefix + k, d), from `encode` of the patches `ids_keep` (b, k).
        ids_mask  (b, m) the places to predict.
        Returns   (b, m, p*q*c).
        """
        tokens = self.decoder_embed(tokens)
        prefix, visible = tokens.tensor_split([tokens.shape[1] - ids_keep.shape[1]], dim=1)
        hidden = self.mask_token.expand(len(tokens), ids_mask.shape[1], -1)
        patches, ids = torch.cat([visible, hidden], dim=1), torch.cat([ids_keep, ids_mask], dim=1)
        patches = patches + self._positions(grid, tokens.shape[-1], ids, device=tokens.device)
        decoded = self.decoder_blocks(torch.cat([prefix, patches], dim=1))
        predicted: Tensor = self.decoder_pred(self.decoder_norm(decoded[:, -ids_mask.shape[1] :]))
        return predicted

    @property
    def pools(self) -> tuple[str, ...]:
        """The ways to describe an image in one vector: its class token, if the encoder has one; its patches' mean."""
        return ("avg",) if self.encoder.cls_token is None else ("token", "avg")

    def tokens(self, images: Tensor) -> Tensor:
        """Encode whole images, nothing masked: (b, c, h, w) -> (b, prefix + n, d)."""
        return self.encode(patchify(images, self.patch_size), self.grid(images.shape[-2:]))

    def features(self, images: Tensor) -> Tensor:
        """Describe images in each of the `pools`, nothing masked: (b, c, h, w) -> (b, p, d)."""
        tokens = self.tokens(images)
        ways = {"token": tokens[:, 0], "avg": tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1)}
        described: Tensor = self.encoder.fc_norm(torch.stack([ways[pool] for pool in self.pools], dim=1))
        return described

    def grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Count the patches per column and per row of an image of this size (height, width) in pixels."""
        height, width = size
        return height // self.patch_size[0], width // self.patch_size[1]

    def visible_count(self, grid: tuple[int, int]) -> int:
        """Count the patches of a grid that the encoder sees: at least one, and one less than all at most."""
        patch_count = grid[0] * grid[1]
        return min(max(1, int(patch_count * (1 - self.mask_ratio))), patch_count - 1)

    def _positions(
        self,
        grid: tuple[int, int],
        width: int,
        ids: Tensor | None,
        *,
        device: torch.device,
        learned: bool = False,
    ) -> Tensor:
        if learned and self.learned_positions:
            patches = self.encoder.pos_embed[0, -math.prod(self.full_grid) :]
            table = resample_positions(patches, self.full_grid, grid)
        else:
            table = sincos_positions(grid, self.full_grid, width, device)
        return table if ids is None else table[ids]

    def _initialize_(self) -> None:
        """MAE's initialisation: Xavier-uniform linear layers, the patch embedding among them; tokens N(0, 0.02)."""
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
    """Build the model with weights that depend on config and seed alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(config)


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, (b, c, h, w) -> (b, n, p*q*c), row by row; MAE's order of values within a patch."""
    return rearrange(images, "b c (y p) (x q) -> b (y x) (p q c)", p=patch_size[0], q=patch_size[1])


def _take(patches: Tensor, ids: Tensor) -> Tensor:
    return patches.gather(1, ids[..., None].expand(-1, -1, patches.shape[-1]))


def _build_encoder(config: ModelConfig) -> Any:
    """Make timm's ViT without a head; typed Any because timm declares its modules' attributes loosely."""
    if not timm.models.is_model_in_modules(config.name, ["vision_transformer"]):
        near = difflib.get_close_matches(config.name, timm.list_models(module="vision_transformer"), n=3)
        raise ConfigError(
            f"model.name: timm has no plain ViT named '{config.name}'; near are {', '.join(near) or 'none'}"
        )
    given = {timms: getattr(config, ours) for ours, timms in TIMM_NAMES.items() if getattr(config, ours) is not None}
    try:
        encoder: Any = timm.create_model(config.name, num_classes=0, global_pool="", weight_init="skip", **given)
    except (AssertionError, ValueError, RuntimeError) as error:  # timm's words for a shape or a name that cannot be
        raise ConfigError(f"model: {config.name} with {given or 'its own shape'} cannot be: {error}") from error
    if not all(hasattr(block, "attn") for block in encoder.blocks):
        raise ConfigError(
            f"model.name: the blocks of '{config.name}' are not those of a plain ViT; try vit_base_patch16_224"
        )
    check_width("width", encoder.embed_dim, encoder.blocks[0].attn.num_heads)
    image_size, patch_size = encoder.patch_embed.img_size, encoder.patch_embed.patch_size
    if any(side % patch for side, patch in zip(image_size, patch_size, strict=True)) or image_size == patch_size:
        raise ConfigError(
            f"model.image_size {'x'.join(map(str, image_size))} must be a multiple of the patch size, "
            f"{patch_size[0]}, and hold more than one patch; change image_size or patch_size"
        )
    return encoder
