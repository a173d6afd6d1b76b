"""A tour of raysid in cells: open it in an editor that runs `# %%` cells, or run it as a program.

It needs no GPU and no Ray cluster: `placement: local` runs the three roles in this process. It takes about a minute.
"""

# %% A recipe is a tree of typed settings. Any of them can be set by its dotted name.
import torch

import raysid

pretraining = raysid.load_recipe(
    "digits-teacher", {"total_images": 25600, "evaluation_samples": 2000, "num_workers": 1}
)
print(pretraining.network)

# %% A teacher: a small diffusion model of 1,797 handwritten digits. 100 steps do not make it a good one.
teacher = raysid.pretrain(pretraining, out="teacher")
print(teacher.path, teacher.metrics)

# %% Distil it: SiDA, with the digits as real images. The three networks take turns in this process.
config = raysid.load_recipe(
    "digits-sida",
    {
        "teacher.recipe": None,
        "teacher.path": teacher.path,
        "placement": "local",
        "torch_threads": 1,
        "total_images": 12800,
        "evaluation.every_images": 6400,
        "evaluation.num_samples": 2000,
        "run.name": "tour",
    },
)
result = raysid.distill(config, fresh=True)
print(result.metrics["best_frechet_distance"])

# %% The product is a torch module. It makes an image in one evaluation.
generator = raysid.load_generator(result.path, which="best")
images = generator.sample(20, torch.arange(10).repeat(2), generator=torch.Generator().manual_seed(0))
print(images.shape, images.min().item(), images.max().item())

# %% An image in characters.
for row in images[3, 0]:
    print("".join(" .:-=+*#%@"[int((pixel + 1) * 4.99)] * 2 for pixel in row))

# %% The loss, on tensors alone: the gradient at the images goes through both predictions.
from raysid.method.losses import sid_loss  # noqa: E402

x_g = images.clone().requires_grad_()
x_teacher, x_fake = 0.9 * x_g, 0.8 * x_g  # stand-ins for the two networks' predictions
sid_loss(x_g, x_teacher, x_fake, alpha=1.0).sum().backward()
print(x_g.grad.flatten(1).norm(dim=1)[:4])
