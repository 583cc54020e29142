"""vLLM beside the trainer: finding it, starting its servers, talking to them. It is never imported here but in `plugin.py`."""
