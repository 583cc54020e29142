"""Full weights by way of a folder: a transport for vLLM's own weight-transfer routes, on any device.

vLLM ships NCCL and CUDA IPC transports, which need GPUs on both sides. Files in safetensors format work everywhere that
trainer and server see the same disk (or memory disk), in whatever parallel layout the server runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)


@dataclass
class FolderInit(WeightTransferInitInfo):
    """Nothing is agreed on beforehand."""


@dataclass
class FolderUpdate(WeightTransferUpdateInfo):
    """folder: holds a Hugging Face checkpoint in safetensors files."""

    folder: str


class FolderEngine(WeightTransferEngine[FolderInit, FolderUpdate]):
    """Reads a checkpoint into the model that is being served."""

    init_info_cls = FolderInit
    update_info_cls = FolderUpdate

    def init_transfer_engine(self, init_info: FolderInit) -> None:
        """There is no connection to make."""

    def start_weight_update(self) -> None:
        """Weights come in checkpoint format: layers are processed again as they arrive."""
        from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
            initialize_layerwise_reload,
        )

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Put the processed layers in place."""
        from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
            finalize_layerwise_reload,
        )

        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            # A head that shares the embedding's weights is passed over, and on CPUs it multiplies by a packed copy.
            for layer in self.model.modules():
                if type(layer).__name__ == "ParallelLMHead":
                    layer.quant_method.process_weights_after_loading(layer)

    def update_weights(self, update_info: dict[str, str]) -> None:
        """As the base class, without its device synchronisation where there is no accelerator."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FolderUpdate) -> None:
        """Load every tensor of every file.

        Raises:
            FileNotFoundError: the folder has no safetensors file.
        """
        files = sorted(Path(update_info.folder).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{update_info.folder}: no safetensors file: can this server see the folder?")
        with torch.device(self.device):
            self.model.load_weights(_tensors(files))

    def shutdown(self) -> None:
        """Nothing is held."""


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                yield name, opened.get_tensor(name)
