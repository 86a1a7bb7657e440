"""From a line of OpenAI's batch output (vLLM's `run-batch` too) to rows of ours, one a choice.

As `adapters`: pure, no tokenizer, no files.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from topr.errors import DataError
from topr.interop.adapters import as_list, expect_object
from topr.interop.reasoning import reasoning_of
from topr.interop.row_files import RawRow, RowStream
from topr.records.distribution import distribution
from topr.store.cells import value_at

_NO_ANSWER = ("content_filter", "tool_calls", "function_call")
"""Reasons to finish of what is not a whole completion."""
_MATCHED = ("stop_reason", "matched_stop")
"""Where vLLM and SGLang say what ended a choice: a stop string, a token's id, or null."""


def by_id(requests: RowStream) -> dict[str, RawRow]:
    """Return the lines of a batch's input by their id."""
    found = {}
    for place, row in requests:
        if not isinstance(row.get("custom_id"), str):
            raise DataError(
                f"requests, {place}: custom_id holds {row.get('custom_id')!r:.80}, expected text"
            )
        found[row["custom_id"]] = row
    return found


def choices(row: RawRow, requests: Mapping[str, RawRow]) -> Iterator[RawRow | None]:
    """A line of a batch's output. A failed request has no completion, nor has a tool call or what a
    filter stopped: None stands for each."""
    if row["custom_id"] not in requests:
        raise DataError(
            f"no request has the custom_id {row['custom_id']!r}: give the file that this batch was "
            "started with"
        )
    response = expect_object(row, "response") if row["response"] else {}
    if row.get("error") or response.get("status_code", 200) != 200:
        yield None
        return
    body, asked = expect_object(response, "body"), expect_object(requests[row["custom_id"]], "body")
    if "choices" not in body and "output" in body:
        raise DataError(
            "this is an answer of /v1/responses, which does not give the model's reasoning: "
            "expected one of /v1/chat/completions or /v1/completions"
        )
    prompt = _prompt(asked)
    drawn = {n: asked[n] for n in ("temperature", "top_p", "top_k") if asked.get(n) is not None}
    # What is not said may be the server's default, or the model's own.
    plain = drawn.get("temperature") == 1 and drawn.get("top_p") == 1 and distribution(asked).scored
    if drawn.get("top_k") == -1:  # vLLM's word for off
        drawn["top_k"] = 0
    for choice in as_list(body, "choices", None):
        chat = _message_of(choice)
        token_ids = choice.get("token_ids")
        text = chat.get("content") if chat else choice.get("text")
        reasoning = _reasoning(chat, body)
        nothing = text is None and not token_ids and not reasoning
        if nothing or choice.get("finish_reason") in _NO_ANSWER:
            yield None
            continue
        yield {
            "prompt_ids": choice.get("prompt_token_ids"),
            **prompt,
            # Where there is reasoning, the text is not all that the ids say.
            "completion": None if token_ids and reasoning else text or "",
            "completion_ids": token_ids,
            "reasoning": None if token_ids else reasoning,
            # They are of the model's own distribution, whatever was sampled.
            "logprobs": _logprobs(choice) if token_ids and plain else None,
            **_end(choice, asked),
            "sampling": drawn,
            "model": body.get("model"),
            "id": row["custom_id"],
        }


def _prompt(asked: RawRow) -> RawRow:
    prompt: Any = asked.get("messages", asked.get("prompt"))
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, str):
        raise DataError("the request has several prompts: expected one for each custom_id")
    if isinstance(first, int):
        return {"prompt": None, "prompt_ids": prompt}
    return {"prompt": [_joined(message) for message in prompt] if first else prompt}


def _message_of(choice: Any) -> RawRow:
    """Return the message of a choice; that of /v1/completions has none."""
    message = choice.get("message") if isinstance(choice, dict) else choice
    if message is None:
        return {}
    if not isinstance(message, dict):
        raise DataError(
            f"the choice {choice!r:.80} holds no message, expected an object with message (or "
            "text) and finish_reason"
        )
    return dict(_joined(message))


def _joined(message: Any) -> Any:
    """Return a message with its parts of text as one text; other parts are left as they are."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    ):
        return message
    return message | {"content": "".join(part["text"] for part in parts)}


def _reasoning(message: RawRow, body: RawRow) -> str | bool | None:
    """Return the reasoning of a message; True if it is hidden, as the counts of tokens show."""
    hidden = bool(value_at(body, "usage.completion_tokens_details.reasoning_tokens"))
    reasoning = reasoning_of(message)
    return (hidden or None) if reasoning is None else reasoning


def _end(choice: RawRow, asked: RawRow) -> RawRow:
    """Return why a choice ended, and its last token where that is known.

    With stop strings in the request, `stop` alone may mean one of them: then nothing is said.
    """
    reason = choice.get("finish_reason")
    matched = next((choice[name] for name in _MATCHED if choice.get(name) is not None), None)
    if isinstance(matched, str):
        return {"finish_reason": "stop_string"}
    if isinstance(matched, int):
        return {"finish_reason": reason, "last_token_id": matched}
    told = any(name in choice for name in _MATCHED)
    unclear = reason == "stop" and asked.get("stop") and not told
    return {"finish_reason": None if unclear else reason}


def _logprobs(choice: RawRow) -> list[float] | None:
    found = choice.get("logprobs") or {}
    if not isinstance(found, dict):
        raise DataError(f"logprobs holds {found!r:.80}, expected an object")
    if found.get("content") is not None:
        return [token["logprob"] for token in found["content"]]
    return found.get("token_logprobs")
