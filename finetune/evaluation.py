"""Evaluate a classifier on validation images, and keep its best weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.classifier import Classifier, vit_config
from finetune.labeled import LabeledImages
from finetune.saved import BEST, Description, as_metadata, describe
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.training.session import RunSession
from mae_curriculum.training.step import Training
from mae_curriculum.weights.names import read_metadata
from mae_curriculum.weights.write import describe_weights, save_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Predictions of a classifier on all readable validation images."""

    confusion: Tensor
    """(classes, classes) image counts: rows are classes, columns predictions."""
    loss: float
    """Mean cross-entropy."""

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly, 0 to 1."""
        return float(self.confusion.trace() / self.confusion.sum())


def evaluated_model(training: Training[Classifier]) -> Classifier:
    """Return the classifier to evaluate and keep: the moving average of the weights, if there is one."""
    return training.model if training.ema is None else cast(Classifier, training.ema.module)


def measure(training: Training[Classifier], val: LabeledImages, inference: Inference) -> ClassifierEvaluation:
    """Evaluate the classifier at full size."""
    model = evaluated_model(training)
    count, device = len(val.classes), training.world.device
    confusion = torch.zeros(count, count, dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    model.eval()
    size, channels = model.image_size, model.channels
    for logits, ids in inference.run(lambda pixels, _: model.logits(pixels), val.images, size=size, channels=channels):
        labels = val.labels[ids.cpu()].to(device)
        confusion += torch.bincount(labels * count + logits.argmax(dim=1), minlength=count**2).view(count, count)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
    model.train()
    return ClassifierEvaluation(confusion.cpu(), float(loss / confusion.sum()))


def keep_best(
    run: RunSession,
    training: Training[Classifier],
    accuracy: float,
    *,
    classes: Sequence[str],
    crop: float,
    step: int,
) -> None:
    """Save the weights under timm's names if this is the best evaluation so far; the file can be imported.

    crop  fraction of an image's shorter side that the evaluation kept.
    """
    is_best = accuracy > (best_accuracy(run.folder) or -1.0)  # False for an accuracy of NaN
    if not is_best:
        return
    model = evaluated_model(training)
    mean, std = training.config.data.statistics(model.channels)
    description = describe(model, classes=tuple(classes), mean=mean, std=std, crop=crop)
    save_classifier(run, model.net, description, accuracy=accuracy, step=step)


def save_classifier(run: RunSession, net: Any, description: Description, *, accuracy: float, step: int) -> None:
    """Save a classifier in the run folder.

    A full disk does not end the run: a warning and the journal say that the weights were not saved.
    """
    model = vit_config(description.architecture, net)
    metadata = describe_weights(model, description.mean, description.std) | as_metadata(description)
    metadata |= {"accuracy": str(accuracy), "steps_done": str(step)}
    try:
        save_weights(run.folder.path / BEST, net.state_dict(), metadata)
    except OSError as error:
        run.journal.write("save_failed", steps_done=step, reason=str(error))
        logger.warning(f"cannot save the best weights: {error}")


def best_accuracy(folder: RunFolder) -> float | None:
    """Return the accuracy of the best weights so far, None before the first evaluation."""
    path = folder.path / BEST
    return float(read_metadata(path)["accuracy"]) if path.exists() else None
