"""The mathematics of the papers: pure functions of tensors, without state, roles or Ray.

A network is used through only the protocol of `denoiser.py`, so a new kind of network or condition needs no edit here.

    losses.py       SiD's and SiDA's losses, one number per sample
    guidance.py     guided prediction, dropping conditions (SiD-LSG)
    noise.py        noise processes: the protocol, EDM's, DDPM's
    predictions.py  epsilon and v; conversion to and from the clean image
    sampling.py     the generator's one step; Heun's and DDIM's samplers
    draws.py        random numbers by address
    schedules.py    learning rate, average, phases of a run
    augment.py      EDM's augmentation

To add a noise process, implement `noise.NoiseProcess`. A network's attribute `noise` is the process it was trained
with; its settings have the default `tmax` and state whether noise levels are step numbers
(`raysid/config/networks.py`). A sampler for it goes into `sampling.py`; `raysid/trainers/evaluation.py` chooses one.
"""
