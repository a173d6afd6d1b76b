"""Reader of published .pkl files: EDM's networks, and the generators of SiD's and SiDA's authors.

Nothing in such a file is executed. `pickles.py` reads a pickle without calling anything that it names, `modules.py`
turns its modules and tensors into plain values, `network.py` builds a network from them.
"""

from raysid.networks.published.network import SIGMA_INIT, Published, read_published

__all__ = ["SIGMA_INIT", "Published", "read_published"]
