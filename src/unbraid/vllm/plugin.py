"""What vLLM loads of us, in each of its processes: the entry point `vllm.general_plugins`.

Nothing is imported here that vLLM's environment might lack: `pip install --no-deps unbraid` is enough.
"""

BACKEND = "unbraid"
"""Name of our transport, as `--weight-transfer-config '{"backend": "unbraid"}'` takes it."""


def register() -> None:
    """Tell vLLM about our parts. It may be called several times in a process."""
    from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
        WeightTransferEngineFactory,
    )

    try:
        WeightTransferEngineFactory.register_engine(BACKEND, "unbraid.vllm.weight_engine", "FolderEngine")
    except ValueError:  # it is registered already
        return
