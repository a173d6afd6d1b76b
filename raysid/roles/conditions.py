"""The conditions of generated samples: their sources, and their form for a network.

A source makes the conditions of an address in the compact form that travels, `raysid.roles.messages.Conditions`. Each
role turns them into its network's conditions, once a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysid.method.draws import DrawsAt
from raysid.networks.denoiser import Network
from raysid.roles.messages import Conditions, Slice
from raysid.roles.protocols import Purpose


class LabelConditions:
    """Class labels, drawn for each address.

    Implements `raysid.roles.protocols.ConditionService`.

    Args:
        frequencies: relative frequency of each class, which need not sum to 1; of no class, conditions are empty.
        draws: makes the random draws, as a `Learner`'s.
    """

    def __init__(self, frequencies: Sequence[float], draws: DrawsAt) -> None:
        self.frequencies = frequencies
        self.draws = draws

    def of(self, at: Slice, purpose: Purpose) -> Conditions:
        """Draw the labels of a microbatch's samples for psi's update or theta's."""
        if not self.frequencies:
            return Conditions({})
        draws = self.draws(at.step, at.start, at.count)
        return Conditions({"labels": draws.labels(f"{purpose}/labels", self.frequencies)})


def network_conditions(conditions: Conditions, network: Network, device: torch.device) -> Tensor | None:
    """Turn conditions into those that a network takes, on a device.

    Returns:
        One-hot labels (B, label_dim), or embeddings (B, tokens, width); None if there are no conditions.
    """
    values = conditions.values
    if "embeddings" in values:
        return values["embeddings"].to(device)
    if "labels" in values:
        cond = one_hot(values["labels"], network.settings.label_dim)
        return None if cond is None else cond.to(device)
    return None


def one_hot(labels: Tensor, label_dim: int) -> Tensor | None:
    """Convert class indices (B,) to float one-hot rows (B, label_dim); None for a network without labels."""
    if label_dim == 0:
        return None
    return torch.nn.functional.one_hot(labels.long(), label_dim).float()
