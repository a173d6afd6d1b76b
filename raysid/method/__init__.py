"""The mathematics of the papers: pure functions, without state, roles or Ray.

A network is used only through the protocol of `denoiser.py`, so a new kind of network or condition needs no edit here.

    losses.py       SiD's and SiDA's losses, one number per sample
    guidance.py     guided prediction, dropping conditions (SiD-LSG)
    noise.py        noise processes: the protocol, EDM's, DDPM's
    predictions.py  epsilon and v; conversion to and from the clean image
    sampling.py     the generator's one step; Heun's and DDIM's samplers
    draws.py        random numbers by address
    schedules.py    learning rate, average, phases of a run
    augment.py      EDM's augmentation

Where to add a noise process: docs/design.md, "Where to add what".
"""
