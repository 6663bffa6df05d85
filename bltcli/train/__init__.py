"""Training: text to a checkpoint in this project's own form, first the entropy model, then the rest with it frozen."""
