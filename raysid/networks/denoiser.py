"""The kinds of networks there are; `raysid.method.denoiser` says what each of them does."""

from __future__ import annotations

from raysid.networks.diffusers import DiffusersDenoiser
from raysid.networks.edm import EDMDenoiser
from raysid.networks.factory import FactoryDenoiser

Network = EDMDenoiser | DiffusersDenoiser | FactoryDenoiser
