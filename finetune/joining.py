"""Join a frozen encoder and a head that was trained on its features to one network of timm."""

from typing import Any

from torch import nn

from finetune.heads import Heads
from finetune.saved import Description, build, without_stated
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, timm_arguments
from mae_curriculum.weights.build import load_into_


def describe_probe(
    encoder: MaskedAutoencoder,
    model: ModelConfig,
    *,
    pool: str,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop: float,
) -> Description:
    """Return the description of an encoder with a head.

    model  the configuration of the encoder.
    pool   what the head sees: token, avg, class_avg, attention or ep.
    """
    norms_tokens = isinstance(encoder.encoder.fc_norm, nn.Identity)  # otherwise the pooled features
    arguments = timm_arguments(model) | {"img_size": encoder.image_size}
    if pool in ("attention", "ep"):
        arguments |= {"global_pool": "map", "final_norm": norms_tokens}  # it sees tokens, before any norm of features
    elif pool == "class_avg":
        arguments |= {"global_pool": "map", "pool_include_prefix": True, "fc_norm": not norms_tokens}
    else:
        arguments |= {"global_pool": pool, "fc_norm": not norms_tokens}
    return Description(
        architecture=str(model.name),
        channels=encoder.channels,
        image_size=encoder.image_size,
        classes=classes,
        mean=mean,
        std=std,
        crop=crop,
        arguments=without_stated(arguments),
        norm_eps=model.norm_eps,
        attentive=pool in ("attention", "ep"),
        ep=pool == "ep",
        class_tokens=model.class_tokens if pool == "class_avg" else 1,
    )


def join(encoder: MaskedAutoencoder, heads: Heads, number: int, description: Description) -> Any:
    """Return the network of a description, with the weights of an encoder and of one of its heads."""
    net = build(description)
    weight, bias = heads.folded(number)
    state = dict(encoder.encoder.state_dict()) | {"head.weight": weight, "head.bias": bias}
    if description.attentive:
        attention = heads.attentions[number].state_dict()
        state = {key: value for key, value in state.items() if not key.startswith("fc_norm.")}
        state |= {f"attn_pool.{key}": value for key, value in attention.items()}
    load_into_(net, state, "the encoder with its head")
    return net
