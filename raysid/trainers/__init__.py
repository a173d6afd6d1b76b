"""What a user starts: `pretrain` a teacher, `distill` it into a generator, evaluate the result."""
