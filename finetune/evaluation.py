"""How a classifier does on images that it did not learn from, and its best weights."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from finetune.classifier import Classifier, vit_config
from finetune.labeled import LabeledImages
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import say
from mae_curriculum.training.session import RunSession
from mae_curriculum.training.step import Training
from mae_curriculum.weights.names import read_facts
from mae_curriculum.weights.write import save_weights

BEST = "best.safetensors"
"""File in the run folder: the weights of the best evaluation so far."""


@dataclass(frozen=True)
class Evaluation:
    """How a classifier does on all images that could be read."""

    confusion: Tensor
    """(classes, classes) images by class, row, and predicted class, column."""
    loss: float
    """Mean cross-entropy."""

    @property
    def accuracy(self) -> float:
        """Share of images that are classified right."""
        return float(self.confusion.trace() / self.confusion.sum())


def evaluated(training: Training[Classifier]) -> Classifier:
    """Give the classifier that is evaluated and kept: the moving average of its weights, if there is one."""
    return training.model if training.ema is None else cast(Classifier, training.ema.module)


def measure(training: Training[Classifier], val: LabeledImages, inference: Inference) -> Evaluation:
    """Evaluate the classifier at the full size."""
    model = evaluated(training)
    count, device = len(val.classes), training.world.device
    confusion = torch.zeros(count, count, dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    model.eval()
    for logits, ids in inference.run(model.logits, val.images, size=model.image_size, channels=model.channels):
        labels = val.labels[ids.cpu()].to(device)
        confusion += torch.bincount(labels * count + logits.argmax(dim=1), minlength=count**2).view(count, count)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
    model.train()
    return Evaluation(confusion.cpu(), float(loss / confusion.sum()))


def keep_best(run: RunSession, training: Training[Classifier], accuracy: float, *, step: int) -> None:
    """Keep the weights of the best evaluation so far, under timm's names, as a checkpoint that can be imported.

    A full disk is no reason to end a run: the journal says that these were not kept.
    """
    if accuracy > (best_accuracy(run.folder) or -1.0):
        model = evaluated(training)
        name = model.net.pretrained_cfg["architecture"]
        facts = {"accuracy": str(accuracy), "steps_done": str(step)}
        try:
            save_weights(run.folder.path / BEST, model.net.state_dict(), vit_config(name, model.net), facts)
        except OSError as error:
            run.journal.write("save_failed", steps_done=step, reason=str(error))
            say(f"warning: the best weights so far could not be written: {error}")


def best_accuracy(folder: RunFolder) -> float | None:
    """Tell the accuracy of the best weights kept so far."""
    path = folder.path / BEST
    return float(read_facts(path)["accuracy"]) if path.exists() else None
