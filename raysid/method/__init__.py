"""The papers' mathematics: losses, noise processes, draws, guidance, sampling, schedules, augmentation.

Pure functions of tensors. A network is reached through `method.denoiser`'s protocol alone; no roles, no Ray.
"""
