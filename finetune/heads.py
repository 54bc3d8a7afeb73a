"""Train many classification heads on the same features of a frozen encoder at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.attention import build_attention
from finetune.config import Kind

View = tuple[int, str]
"""A number of a block, counted from 0, and a pooling of its tokens: token, avg; attention or ep of heads with these."""


class Heads(nn.Module):
    """Independent classification heads that share a forward pass of the encoder."""

    def __init__(
        self,
        kind: Kind,
        views: Sequence[View],
        grid: Sequence[float],
        *,
        width: int,
        attention_heads: int,
        class_count: int,
    ) -> None:
        """Build a head for each pair of a view and a learning rate.

        kind             linear: BatchNorm without affine, and a linear layer. attentive: before these, attention of a
                         learned query over all patches, and an MLP. ep: before these, EP's (`EfficientProbe`).
                         Heads with attention have one view.
        views            what the features are of an image.
        grid             learning rates, as multiples of the base learning rate.
        width            width of the encoder.
        attention_heads  heads of the attention.
        """
        super().__init__()
        self.names = [(view, factor) for view in views for factor in grid]
        normed = views if kind == "linear" else self.names  # each attention has an output of its own
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False, eps=1e-6) for _ in normed)
        self.linears = nn.ModuleList(nn.Linear(width, class_count) for _ in self.names)
        self.attentions = nn.ModuleList()
        if kind != "linear":
            ep = kind == "ep"
            self.attentions.extend(build_attention(ep=ep, width=width, heads=attention_heads) for _ in self.names)
        for parameter in self.parameters():  # a diverging head must not cause the step of all to be skipped
            parameter.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))  # type: ignore[no-untyped-call]
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            nn.init.trunc_normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return each image's cross-entropy (b,): the value is the mean over the heads, the gradient that of their sum.

        So each head trains as if it were alone.

        features  (b, v, d) of each view, or (b, n, d) of all patches for attentive heads.
        labels    (b,) int64.
        """
        logits = self.logits(features).float().nan_to_num()  # a diverging head gets no gradient and affects no other
        targets = labels.repeat_interleave(len(self.names))
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        losses = losses.view(len(labels), len(self.names))
        total = losses.sum(dim=1)
        return losses.detach().mean(dim=1) + total - total.detach()

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of each head, (b, heads, classes)."""
        if self.attentions:
            pairs = zip(self.norms, self.attentions, strict=True)
            pooled = [norm(attention(features)) for norm, attention in pairs]
        else:
            normed = [norm(features[:, view]) for view, norm in enumerate(self.norms)]
            pooled = [one for one in normed for _ in range(len(self.linears) // len(normed))]
        return torch.stack([linear(one) for linear, one in zip(self.linears, pooled, strict=True)], dim=1)

    @torch.no_grad()
    def folded(self, number: int) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the linear layer that equals a head's batch normalization and linear layer."""
        norm: Any = self.norms[number * len(self.norms) // len(self.linears)]
        linear: Any = self.linears[number]
        weight = linear.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = linear.bias.double() - weight @ norm.running_mean.double()
        return weight.float(), bias.float()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameter groups with the learning rates of the heads; LARS neither decays nor adapts biases."""
        groups = []
        for number, (_, factor) in enumerate(self.names):
            parameters = list(self.linears[number].parameters())
            if self.attentions:
                parameters += self.attentions[number].parameters()
            matrices = [p for p in parameters if p.ndim > 1]
            vectors = [p for p in parameters if p.ndim == 1]
            groups.append({"params": matrices, "lr_scale": factor, "weight_decay": weight_decay, "always_adapt": True})
            groups.append({"params": vectors, "lr_scale": factor, "weight_decay": 0.0, "always_adapt": False})
        return groups
