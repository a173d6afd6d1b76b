"""The conditions of generated samples: their sources, and their form for a network.

A source makes the conditions of an address in the compact form that travels, `raysid.roles.messages.Conditions`. Each
role turns them into its network's conditions, once a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysid.config import Config
from raysid.data.prompts import PromptStream
from raysid.method.draws import DrawsAt
from raysid.networks.denoiser import Network
from raysid.networks.text import TextEncoder, Tokenizer
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

    def report(self) -> dict[str, float]:
        """Return no figures."""
        return {}

    def close(self) -> None:
        pass


class PromptConditions:
    """Prompts, each at the position of its sample in a stream, as token ids.

    Implements `raysid.roles.protocols.ConditionService`. In the alternating order psi's samples and theta's have
    separate prompts, psi's first.

    Args:
        stream: the prompts.
        config: the run's settings.
    """

    def __init__(self, stream: PromptStream, tokenizer: Tokenizer, config: Config) -> None:
        self.stream, self.tokenizer = stream, tokenizer
        self.batch_size = config.batch_size
        self.alternating = config.schedule == "alternating"
        self.prompts = self.cut = 0

    def of(self, at: Slice, purpose: Purpose) -> Conditions:
        """Return the token ids (B, tokens) of a microbatch's prompts."""
        batch = 2 * at.step + (purpose == "generator") if self.alternating else at.step
        prompts = self.stream.read(batch * self.batch_size + at.start, at.count)
        tokens = self.tokenizer(prompts)
        self.prompts += len(prompts)
        self.cut += int(tokens.cut.sum())
        return Conditions({"tokens": tokens.ids})

    def report(self) -> dict[str, float]:
        """Return figures since the start: prompts read, and the share of them that was cut."""
        return {"prompts": float(self.prompts), "prompts_cut": self.cut / max(1, self.prompts)}

    def close(self) -> None:
        self.stream.close()


def network_conditions(
    conditions: Conditions, network: Network, device: torch.device, text: TextEncoder | None = None
) -> Tensor | None:
    """Turn conditions into those that a network takes, on a device.

    Args:
        text: the text encoder, for token ids.

    Returns:
        One-hot labels (B, label_dim), or embeddings (B, tokens, width); None if there are no conditions.
    """
    values = conditions.values
    if "tokens" in values:
        assert text is not None
        return text(values["tokens"]).to(device)
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
