"""How many floating-point operations an optimizer step needs, from the workload alone."""

from workloads import Workload, rows


def model_flops(workload: Workload) -> float:
    """Operations of an exact gradient of one step, computed plainly but without any waste.

    Every sequence has its own prompt and no padding. With P parameters in the matrix products of
    all layers, A the attention's width (heads times head size) in each of K layers, H the hidden
    width, V the vocabulary, and a prompt of p and a completion of c tokens, a sequence takes

        6 P (p + c)  +  6 H V c  +  6 A K (p + c) (p + c + 1)

    which is two per parameter and token forward and four backward; the head at completion tokens
    only; and attention's two products over the tokens at or before each one. Norms, softmax,
    embedding, optimizer and whatever is computed again count nothing.

    So the share of a step that shares its prompts can exceed what the device did: a prompt counts
    here for each of its completions. Recomputation, padding and logits of prompts lower it.
    """
    model = workload.model
    width = model["hidden_size"]
    head_size = model.get("head_dim") or width // model["num_attention_heads"]
    attention = head_size * model["num_attention_heads"]
    key_value = head_size * model["num_key_value_heads"]
    layers = model["num_hidden_layers"]
    parameters = layers * width * (2 * attention + 2 * key_value + 3 * model["intermediate_size"])
    total = 0
    for row in rows(workload):
        completion = len(row["completion_ids"])
        length = len(row["prompt_ids"]) + completion
        total += 6 * parameters * length
        total += 6 * width * model["vocab_size"] * completion
        total += 6 * attention * layers * length * (length + 1)
    return float(total)
