"""A small classifier of digits; its penultimate units are the features of the Fréchet distance."""

from __future__ import annotations

from importlib import resources

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS_FILE = "digits_classifier.safetensors"


class DigitsClassifier(nn.Module):
    """Four layers before the logits: three convolutions and 64 feature units.

    Images are float (B, 1, 8, 8) in [-1, 1]. The features are ordinary ReLU activations at the scale at which they were
    trained, so the distance grows when a generator loses a digit or half of its variety. (The convolutions have batch
    normalisation, with stored statistics in eval mode; the feature layer has none.)
    """

    image_shape = (1, 8, 8)
    num_features = 64
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.norm2 = nn.BatchNorm2d(64)
        self.norm3 = nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64 * 4 * 4, self.num_features)
        self.head = nn.Linear(self.num_features, self.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate activations, (B, 64), non-negative.

        Raises:
            ValueError: the images are not (B, 1, 8, 8).
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"the digits classifier takes images (B, 1, 8, 8), got {tuple(images.shape)}")
        # Shift the background from -1 to 0, the value with which the convolutions pad.
        x = (images + 1) / 2
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return F.relu(self.hidden(x.flatten(1)))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 64) and logits (B, 10) from one pass; raises as `features` does."""
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10); raises as `features` does."""
        return self.features_and_logits(images)[1]


def load_digits_classifier() -> DigitsClassifier:
    """Load the classifier with the weights in the package, frozen and in eval mode.

    `tests/support/train_digits_classifier.py` made the weights. They never change, so figures of different runs are
    comparable.
    """
    classifier = DigitsClassifier()
    # as_file, because the package may be imported from a zip: Ray ships working directories as one
    with resources.as_file(resources.files("raysid.metrics") / WEIGHTS_FILE) as path:
        classifier.load_state_dict(load_file(path))
    return classifier.eval().requires_grad_(False)
