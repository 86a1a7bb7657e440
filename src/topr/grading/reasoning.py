"""The part of a completion that answers: no thinking, no control tokens. Text in, text out.

What an answer is, and where it is stated, is `topr.grading.statements`'s business. Every search
here is linear: a completion is hostile text.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

_NAME = (
    r"[\w:.\u2581-]{0,30}?(?i:think|thought|reason|reflect|scratch_?pad|rationale|monologue|analysis"
    r"|deliberat|ponder|brainstorm|critique|verif|inner_(?!prefix|suffix)|hidden_|self_|\bcot\b|\bplan\b|\bdraft\b)"
    r"[\w:.\u2581-]{0,30}"
)
_CLOSING_NAME = re.compile(r"/|(?:end|stop|close)(?![a-z])|.*[_:.\u2581-](?:end|stop|close)$", re.I)
_ROLE = r"[ \t\n]*(?:assistant|model|chatbot|gpt|ai)\b(?:<\|end_header_id\|>|<\|im_sep\|>)?"
_TURN = r"<\|(?:start_header_id|im_start|start|turn|role)\|?>|<(?:start_of_turn|role)>"

# Thinking marks of all families: <think>, <|begin_of_thought|>, [THINK], <seed:think>, the
# channels of gpt-oss and Gemma, and the sentences of Granite.
_TAG = (
    rf"<[|\uff5c]?[ ]?/?[ ]?{_NAME}(?:\s[^<>\n]{{0,40}})?[|\uff5c]?>"
    r"|\[/?(?:THINK|THINKING|THOUGHT|REASONING)\]|\u25c1/?think\u25b7"
)
_OPEN = (
    r"<\|channel\|>\s*(?:analysis|commentary)[^<\n]{0,80}(?:<\|message\|>)?"
    r"|<\|channel>\s*thought|<unused94>\s*thought|<\|inner_prefix\|>"
    r"|\bHere(?:'s| is) my thought process:"
)
_CLOSE = (
    r"(?:<\|end\|>\s*)?(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final[^<\n]{0,80}"
    r"(?:<\|message\|>)?|<channel\|>|<unused95>|<\|inner_suffix\|>"
    r"|\bHere(?:'s| is) my response:"
)
# Tokens that begin the turn of an assistant: they say nothing of what follows.
_BEGIN = (
    rf"(?:<\|end\|>\s*)?(?:{_TURN}){_ROLE}|<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>"
    r"|<\|message\|>|<\|begin_of_solution\|>|<\|START_(?:RESPONSE|OF_TURN_TOKEN)\|>"
    r"|<\|CHATBOT_TOKEN\|>|<[|\uff5c](?i:assistant)[|\uff5c]>|\[\|assistant\|\]"
)
_END = (
    r"<[|\uff5c](?!(?:begin|end)_of_box)[^<>|\uff5c\s]{1,48}[|\uff5c]>|(?i:</?(?:[a-z]{1,12}:)?(?:s|eos|bos|pad|eod|eot|eom|sep"
    r"|cls|end|stop|human|user|bot|assistant|system|im_end|im_start|endoftext|role"
    r"|(?:start|end)_of_(?:turn|utterance|text)|unused\d+|reserved_\w+|special_\d+|extra_id_\d+"
    r"|question|problem|instruction|prompt)>)|<_\w{1,20}>|<\[\w{1,40}\]>|<turn\|>|<\|turn>"
    r"|\[/?(?:INST|SYS|SYSTEM_PROMPT|EOS|BOS|PAD|SEP|CLS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS"
    r"|gMASK)\]|<</?SYS>>|\[\|[a-z]{1,20}\|\]|\[e~\[|\]~!?b[\]\[]"
)
# At the very start of a completion these say that nothing was answered; others are skipped there.
_NOTHING = re.compile(r"/s|INST|end|eo[stdm]|return|stop|user|human|system|start|turn|tool", re.I)


@lru_cache(maxsize=64)
def _patterns(stop_tokens: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A character that a mark may begin with, and the marks: the first that fits counts."""
    named = "|".join(re.escape(token) for token in sorted(stop_tokens, key=len, reverse=True))
    end = f"{named}|{_END}" if named else _END
    first = "".join(re.escape(token[0]) for token in stop_tokens)
    return re.compile(rf"[<\[\]\u25c1H{first}]"), re.compile(
        f"(?P<tag>{_TAG})|(?P<open>{_OPEN})|(?P<close>{_CLOSE})|(?P<begin>{_BEGIN})|(?P<end>{end})"
    )


def _marks(text: str, stop_tokens: tuple[str, ...] = ()) -> Iterator[tuple[str, re.Match[str]]]:
    """Kind and match of each mark, in order."""
    may_begin, marks = _patterns(stop_tokens)
    position = 0
    while (candidate := may_begin.search(text, position)) is not None:
        position = candidate.end()
        match = marks.match(text, candidate.start())
        if match is None:
            continue
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "tag":
            closes = _CLOSING_NAME.match(match.group().strip("<>[]|\uff5c\u25c1\u25b7"))
            kind = "open" if closes is None else "close"
        yield kind, match


def strip_reasoning(completion: str, stop_tokens: tuple[str, ...] = ()) -> str:
    """What a completion says outside its thinking, up to the first control token.

    Thinking that never ends leaves what stood before it; thinking that ends without a beginning
    (the prompt began it) leaves what stands behind it.

    >>> strip_reasoning("<think>2 * 3 = 6</think>The answer is 6.<|im_end|>\\n<|im_start|>user")
    'The answer is 6.'

    Args:
        completion: Text with or without special tokens.
        stop_tokens: Special tokens of the tokenizer that wrote it, where it is known. The common
            families' need not be named. Those that mark thinking are taken for what they are.

    """
    kept: list[str] = []
    thinking = said = False
    position = 0
    for kind, match in _marks(completion, stop_tokens):
        if not thinking:
            kept.append(completion[position : match.start()])
            said = said or bool(kept[-1].strip())
        position = match.end()
        if kind == "open":
            thinking = True
        elif kind == "close":
            if not thinking:
                kept, said = [], False
            thinking = False
        elif (kind == "end" and (said or thinking or _NOTHING.search(match.group()))) or (
            said and not thinking
        ):
            return "".join(kept)
    if not thinking:
        kept.append(completion[position:])
    return "".join(kept)


def opened_by(prompt: str) -> str:
    """The mark with which a prompt begins the thinking; empty where it does not.

    >>> opened_by("What is 2 * 3?<|assistant|>\\n<think>\\n")
    '<think>'
    """
    tail = prompt[-200:].rstrip()
    marks = list(_marks(tail))
    if marks and marks[-1][0] == "open" and marks[-1][1].end() == len(tail):
        return marks[-1][1].group()
    return ""
