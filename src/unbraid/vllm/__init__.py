"""vLLM beside the trainer: finding it, starting its servers, talking to them.

It runs in an environment of its own; only `plugin.py` and `weight_engine.py`, which it loads, import it.
"""
