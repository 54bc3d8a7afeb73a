import torch

from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.training.config import OptimConfig
from mae_curriculum.training.optimizer import build_optimizer
from tests.small import SMALL


def test_tokens_are_decayed_and_vectors_and_fixed_positions_are_not() -> None:
    # facebookresearch/mae: timm 0.3.2 exempts biases and whatever has one dimension
    model = build_model(SMALL, seed=0)
    decays = {
        p: group["weight_decay"]
        for group in build_optimizer(model, OptimConfig()).param_groups
        for p in group["params"]
    }
    by_name = {name: decays.get(parameter) for name, parameter in model.named_parameters()}
    assert by_name["encoder.pos_embed"] is None
    decayed = ["encoder.cls_token", "mask_token", "encoder.patch_embed.proj.weight", "decoder.blocks.0.mlp.fc1.weight"]
    assert [by_name[name] for name in decayed] == [0.05] * 4
    exempt = ["encoder.patch_embed.proj.bias", "encoder.norm.weight", "encoder.blocks.0.attn.qkv.bias"]
    assert [by_name[name] for name in exempt] == [0.0] * 3


def test_decay_alone_shrinks_a_token_by_learning_rate_times_decay() -> None:
    model = build_model(SMALL, seed=0)
    optimizer = build_optimizer(model, OptimConfig())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    before = model.mask_token.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.mask_token.detach(), before * (1 - 0.1 * 0.05))
