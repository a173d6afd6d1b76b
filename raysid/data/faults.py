"""Bad images: what is wrong with each, by its place in the source's list."""

from __future__ import annotations

from collections.abc import Iterable

from raysid.errors import RunFailed

NAMED = 5  # bad images that a message names


def all_faults(found: Iterable[dict[int, str]]) -> dict[int, str]:
    """What several readers have met; they may have met the same."""
    return {place: fault for of_one in found for place, fault in of_one.items()}


def check_faults(faults: dict[int, str], max_bad_fraction: float, num_images: int) -> None:
    """Raises RunFailed where so many images of a set are bad."""
    if len(faults) > max_bad_fraction * num_images:
        named = "; ".join(list(faults.values())[:NAMED])
        rest = len(faults) - NAMED
        more = f"; and {rest:,} more, which `raysid data check` names" if rest > 0 else ""
        raise RunFailed(
            f"{len(faults):,} of {num_images:,} real images cannot be used, which is more than "
            f"data.max_bad_fraction = {max_bad_fraction:g} of them ({named}{more}): repair them, or give a larger "
            "fraction"
        )
