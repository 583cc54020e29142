"""Our two ideas in TRL's trainers: entropy constraints in its GRPO, routed LoRA as a model for any of them.

docs/trl.md says what works and what does not.
"""

from unbraid.trl.release import check_release

check_release()

from unbraid.trl.constrained import ConstrainedGRPOTrainer  # noqa: E402 (another release may not even import)
from unbraid.trl.routed import RoutedModel, route_model  # noqa: E402

__all__ = ["ConstrainedGRPOTrainer", "RoutedModel", "route_model"]
