"""What can be known before a run: `unbraid doctor RECIPE` and `train --dry-run`. It looks and changes nothing."""

from unbraid.chat.checks import Finding
from unbraid.doctor.show import print_findings
from unbraid.doctor.visit import diagnose

__all__ = ["Finding", "diagnose", "print_findings"]
