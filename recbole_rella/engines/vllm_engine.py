"""vLLM in this process (its offline engine), on a folder with the adapters merged in.

Merged and not as a LoRA request: the scores are the same, and on a CPU eight times as fast (results/README.md); soft tokens
of items come along. An engine holds one set of weights: with others it is started anew.
"""

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from recbole_rella.engines.engine import Engine, EngineError, two_way
from recbole_rella.llm.merged_folder import write_merged

logger = logging.getLogger(__name__)


class VllmEngine(Engine):
    """vLLM's offline engine with prefix caching.

    Args:
        llm, answer_ids: as of `Engine`.
        tokenizer (transformers.PreTrainedTokenizerBase): of the LLM; vLLM gets token ids alone.
        max_tokens (int): of the longest prompt.
        arguments (dict): passed to vllm.LLM (gpu_memory_utilization, tensor_parallel_size, ...).

    Raises:
        EngineError: vLLM cannot be imported, or does not take this LLM.
    """

    name = "vllm"

    def __init__(self, llm, tokenizer, answer_ids, max_tokens, arguments):
        super().__init__(llm, answer_ids)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        # A prompt may fill all positions that an LLM has: the token behind it is chosen, and never read.
        os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
        try:
            import vllm
        except (ImportError, OSError, RuntimeError) as error:  # builds of other versions of torch raise all of them
            raise EngineError(f"scoring_engine: expected vllm to be importable, found {type(error).__name__}: {error}") from error
        self._vllm, self._tokenizer, self._max_tokens, self._arguments = vllm, tokenizer, max_tokens, arguments
        self._engine = None

    def _take(self, rellax, weights):
        self._engine, began = None, time.monotonic()  # the one before goes first: two would not fit
        soft = {}
        if rellax is not None and rellax.soft is not None and (items := rellax.soft.of_items()) is not None:
            first = rellax.soft.first
            soft = {"items": items, "first": first, "item_ids": [str(place) for place in range(len(items))]}
        folder = Path(tempfile.mkdtemp(prefix="recbole_rella-vllm-"))
        try:
            write_merged(self.llm, folder, self._tokenizer, **soft)
            given = {
                "dtype": str(self.llm.dtype).removeprefix("torch."),
                "max_model_len": self._max_tokens + 1,
                "enable_prefix_caching": True,
                "logprobs_mode": "processed_logprobs",
                "skip_tokenizer_init": True,
                "disable_log_stats": True,
            }
            self._engine = self._vllm.LLM(model=str(folder), **{**given, **self._arguments})
        except Exception as error:  # of its processes and of its settings: whatever it is, vLLM's own words say it best
            raise EngineError(f"scoring_engine: vLLM does not start ({type(error).__name__}: {error})") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("vLLM %s started in %.0f seconds.", self._vllm.__version__, time.monotonic() - began)

    def _ask(self, ids):
        yes, no = self.answer_ids
        # Defaults of sampling may come with an LLM: each is named.
        parameters = self._vllm.SamplingParams(
            max_tokens=1,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            logprobs=2,
            allowed_token_ids=[yes, no],
            detokenize=False,
        )
        try:
            answers = self._engine.generate([{"prompt_token_ids": prompt} for prompt in ids], parameters, use_tqdm=False)
        except Exception as error:
            raise EngineError(f"scoring_engine: vLLM does not score ({type(error).__name__}: {error})") from error
        found = [answer.outputs[0].logprobs[0] for answer in answers]
        scores = two_way([one[yes].logprob for one in found], [one[no].logprob for one in found])
        return scores.astype(np.float32)
