"""Sampling from a policy: trajectories, and the samplers that make them."""
