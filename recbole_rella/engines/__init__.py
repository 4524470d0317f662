"""Who computes P(yes): transformers in this process (llm/scoring.py), or an engine that is asked for it.

`scoring_engine` names it: vllm (in this process) or the URLs of servers. None of them is trusted before it has scored a few prompts
as transformers does.
"""

from recbole_rella.engines.engine import Engine, EngineError
from recbole_rella.key_rules import TRANSFORMERS, VLLM, server_urls

__all__ = ["Engine", "EngineError", "make_engine"]


def make_engine(settings, llm, tokenizer, answer_ids, max_tokens):
    """The engine of a configuration.

    Args:
        settings (Mapping): with scoring_engine and vllm_args.
        llm (peft.PeftModel): whose scores are wanted.
        tokenizer (transformers.PreTrainedTokenizerBase): of the LLM.
        answer_ids (tuple of int): tokens of the positive and of the negative answer.
        max_tokens (int): of the longest prompt.

    Returns:
        Engine or None: None for transformers.

    Raises:
        EngineError: there is no such engine here.
    """
    name = settings["scoring_engine"]
    if name == TRANSFORMERS:
        return None
    if name == VLLM:
        from recbole_rella.engines.vllm_engine import VllmEngine

        return VllmEngine(llm, tokenizer, answer_ids, max_tokens, settings["vllm_args"])
    from recbole_rella.engines.servers import Servers

    return Servers(llm, answer_ids, server_urls(name))
