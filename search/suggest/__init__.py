"""Suggest trials and stop weak ones: the conditional space, the baselines, the sampler, early stopping."""
