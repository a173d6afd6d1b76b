"""Training and measuring: `pretrain` a teacher, `distill` it into a generator, evaluate the result, search settings."""
