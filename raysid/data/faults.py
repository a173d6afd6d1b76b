"""Faults: the reasons why images cannot be used, by the image's index in the source's list."""

from __future__ import annotations

from collections.abc import Iterable

from raysid.errors import RunFailed

NAMED = 5  # faults that a message lists


def all_faults(found: Iterable[dict[int, str]]) -> dict[int, str]:
    """Merge the faults of several readers, which may have read the same images."""
    return {index: fault for faults in found for index, fault in faults.items()}


def check_faults(faults: dict[int, str], max_bad_fraction: float, num_images: int) -> None:
    """Check the number of faults.

    Raises:
        RunFailed: more than `max_bad_fraction` of the images cannot be used.
    """
    if len(faults) > max_bad_fraction * num_images:
        named = "; ".join(list(faults.values())[:NAMED])
        rest = len(faults) - NAMED
        more = f"; and {rest:,} more, which `raysid data check` names" if rest > 0 else ""
        raise RunFailed(
            f"{len(faults):,} of {num_images:,} real images cannot be used, which is more than "
            f"data.max_bad_fraction = {max_bad_fraction:g} of them ({named}{more}): repair them, or give a larger "
            "fraction"
        )
