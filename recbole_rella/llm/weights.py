"""Whether a checkpoint has all weights of the LLM that its configuration describes: transformers makes up those that it lacks."""

# Arguments of from_pretrained with which it returns beside a model what it made up; else it writes some of that to its log alone.
TELLING = {"output_loading_info": True, "ignore_mismatched_sizes": True}
_NAMED = 3


def lacking(model, found):
    """What a checkpoint lacks, in words. Buffers are no weights: a model computes those that it does not find.

    Args:
        model (transformers.PreTrainedModel), found (dict): of from_pretrained with TELLING.

    Returns:
        str: such as "no lm_head.weight"; empty where nothing is.
    """
    names = {name for name, _ in model.named_parameters()}
    told = [f"no {name}" for name in sorted(names & set(found["missing_keys"]))]
    told += [f"{name} of {[*has]}, not of {[*wanted]}" for name, has, wanted in sorted(found["mismatched_keys"])]
    more = f", and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return ", ".join(told[:_NAMED]) + more
