"""vLLM beside the trainer: finding it, starting its servers, talking to them, and what it loads of us.

It runs in an environment of its own; only `plugin.py`, and what that names, imports it: `weight_engine.py` takes whole
policies from a folder, `routing.py` routes tokens to adapters.
"""
