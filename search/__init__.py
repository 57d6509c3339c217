"""Decide what to try: config, space, sampler, trials, slots, record."""
