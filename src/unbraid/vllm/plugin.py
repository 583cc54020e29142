"""What vLLM loads of us, in each of its processes: the entry point `vllm.general_plugins`.

Nothing is imported here that vLLM's environment might lack: `pip install --no-deps unbraid` is enough.
"""

from contextlib import suppress

BACKEND = "unbraid"
"""Name of our transport, as `--weight-transfer-config '{"backend": "unbraid"}'` takes it."""


def register() -> None:
    """Tell vLLM about our parts. It may be called several times in a process.

    Raises:
        RuntimeError: routed adapters are asked for, and this vLLM cannot serve them.
    """
    from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
        WeightTransferEngineFactory,
    )

    from unbraid.vllm import routing

    with suppress(ValueError):  # it is registered already
        WeightTransferEngineFactory.register_engine(BACKEND, "unbraid.vllm.weight_engine", "FolderEngine")
    try:
        routing.install()
    except RuntimeError:  # without routed adapters any vLLM is as good as without us
        if routing.asked_for():
            raise
