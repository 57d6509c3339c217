"""What to try next: the conditional space, the baselines, the sampler, and when to give a trial up."""
