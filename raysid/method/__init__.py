"""The mathematics of the papers: pure functions of tensors, without state, roles or Ray.

A network is used through the protocol of `denoiser.py` alone, so a new kind of network or condition needs no edit here.

    losses.py       SiD's and SiDA's losses, one number a sample
    guidance.py     guided prediction, dropping conditions (SiD-LSG)
    noise.py        noise processes: the protocol, EDM's, DDPM's
    predictions.py  epsilon and v, and the clean sample in them
    sampling.py     the generator's one step; Heun's and DDIM's samplers
    draws.py        random numbers by address
    schedules.py    learning rate, average, phases of a run
    augment.py      EDM's augmentation

To add a noise process, implement `noise.NoiseProcess`. A network's attribute `noise` is the process it was trained
with; its settings have the default `tmax` and tell steps from real noise levels (`raysid/config/networks.py`). A
sampler for it goes into `sampling.py`; `raysid/trainers/evaluation.py` chooses one.
"""
