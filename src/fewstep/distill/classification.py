"""A classifier trained on the spot, where no pretrained network fits, for a discriminator to look through (GDD)."""

from __future__ import annotations

import torch.nn.functional as F

from fewstep.core.method import Batch, Loss, Method, Phase
from fewstep.nets.features import Classifier


class Classification(Method):
    """Trains a classifier on images and their classes, so that its features can be a discriminator's (see `Classifier`)."""

    product = "classifier"

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.phases = (Phase("classifier", self.cross_entropy),)

    def cross_entropy(self, batch: Batch) -> Loss:
        assert batch.label is not None
        logits = self.classifier.logits(batch.image)
        return F.cross_entropy(logits, batch.label, reduction="none"), {
            "accuracy": (logits.argmax(1) == batch.label).float().mean()
        }
