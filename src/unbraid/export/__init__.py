"""Models for others: folders that stock transformers, PEFT and vLLM load, with a card."""

from unbraid.export.write import Exported, export_run

__all__ = ["Exported", "export_run"]
