"""The kinds of networks; each has the methods of `raysid.method.denoiser.Denoiser`."""

from __future__ import annotations

from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.edm import EDMDenoiser
from raysid.networks.factory import FactoryDenoiser

Network = EDMDenoiser | DiffusersDenoiser | FactoryDenoiser
