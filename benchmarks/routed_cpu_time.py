"""CPU seconds of routed and plain adapters in vLLM; `routed_serving.py` runs it with the interpreter that has vLLM.

    python benchmarks/routed_cpu_time.py FOLDER REQUESTS PROMPT TOKENS ROUNDS

Seconds that a process computed are not disturbed by what else a machine does. Here all of vLLM but the web server is
one process with one thread, so tokens per such second are tokens per second of an undisturbed core. FOLDER holds
`model` and the adapters `routed`. The last line is JSON: seconds by round, [[routed, plain], …].
"""

import json
import os
import sys
import time

# Read when vLLM is imported: no processes of its own, one thread, little memory.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
}

import numpy as np
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.inputs import TokensPrompt  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Rounds of both, in turn in either order."""
    folder, (requests, prompt, tokens, rounds) = sys.argv[1], map(int, sys.argv[2:])
    engine = LLM(
        f"{folder}/model", dtype="float32", skip_tokenizer_init=True, max_model_len=prompt + tokens + 1,
        logprobs_mode="processed_logprobs", enable_lora=True, max_loras=2, max_cpu_loras=4, max_lora_rank=8,
        async_scheduling=False, distributed_executor_backend="uni",
    )  # fmt: skip
    adapters = [LoRARequest("both", 1, f"{folder}/routed"), LoRARequest("alone", 2, f"{folder}/routed/reasoning")]
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False)
    rng, vocabulary = np.random.default_rng(0), engine.llm_engine.model_config.get_vocab_size()
    seconds = []
    for number in range(rounds + 1):
        taken = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            ids = rng.integers(3, vocabulary, size=(requests, prompt)).tolist()
            started = time.process_time()
            engine.generate(
                [TokensPrompt(prompt_token_ids=one) for one in ids],
                sampling,
                lora_request=adapters[which],
                use_tqdm=False,
            )
            taken[which] = time.process_time() - started
        seconds.append(taken)
    print(json.dumps(seconds[1:]))  # the first round warms up


if __name__ == "__main__":
    main()
