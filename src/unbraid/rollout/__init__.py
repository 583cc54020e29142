"""Sampling from a policy: trajectories, and the samplers that make them."""

from unbraid.rollout.local import LocalSampler
from unbraid.rollout.trajectory import Finish, Request, Trajectory

__all__ = ["Finish", "LocalSampler", "Request", "Trajectory"]
