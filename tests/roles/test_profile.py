"""Measurements of a role's process."""

from __future__ import annotations

import torch

from raysid.roles.messages import Conditions, Images, Slice
from raysid.roles.profile import Traffic


def test_traffic_counts_the_tensors_of_messages_and_of_their_mappings() -> None:
    traffic = Traffic()
    conditions = Conditions({"tokens": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.zeros(2)})
    images = Images(torch.zeros(2, 3))
    traffic.call(lambda at, cond: (images, at, None), Slice(0, 0, 2), conditions)
    assert traffic.received_bytes == 2 * 5 * 8 + 2 * 4
    assert traffic.sent_bytes == 2 * 3 * 4
