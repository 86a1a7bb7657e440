"""What stands next to a value and changes it. Text in, yes or no out; no value is read here.

`half of 5`, `5 dozen`, `5 or 7`, `at least 5` and `5, no wait` are not 5. Words that are not
listed here are units and prose: `5 apples`, `5 dollars in total`.
"""

import re

_SCALES = "hundred|thousand|million|billion|trillion"
_ORDINALS = "third|quarter|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth"
_DOUBT = "maybe|perhaps|possibly|alternatively|otherwise|unsure|either|neither|nor|unless|versus|vs"
_ARITHMETIC = (
    r"minus|plus|times(?=\s+[-+$(\\]*\d)|divided|multiplied|subtracted|added|squared|cubed|modulo|mod"
    "|factorial|root|power|raised|reciprocal|inverse|logarithm|exponent|choose"
)
_MULTIPLES = (
    "half|halves|twice|thrice|double|doubled|triple|tripled|quadruple|dozens?|score|gross|lakhs?"
    rf"|crores?|(?:{_SCALES})s?|ppm|ppb|bps|basis\s+points?|per\s+mille|hundredths|thousandths"
    "|tenths|fifths|eighths"
)
_BOUNDS = (
    "least|most|over|under|above|below|beyond|exceeds?|exceeding|almost|nearly|fewer|greater|larger"
    "|smaller|bigger|lower|higher|maximum|minimum|between|within|except|excluding|roughly"
)
_DENIALS = r"not|never|cannot|isn|aren|wasn|don|doesn|wrong|incorrect"

BEFORE = re.compile(
    rf"\b(?:or|{_DENIALS}|{_DOUBT}|{_ARITHMETIC}|{_MULTIPLES}|{_BOUNDS}|negative"
    r"|(?:more|less)\s+than"
    rf"|up\s+to|no\s+(?:more|less)|close\s+to|short\s+of|(?:{_ORDINALS})s?\s+of"
    r"|(?:opposite|ratio|cube|square|multiple|divisor|factor)\s+of|divisible\s+by"
    r"|(?:one|each|any|some|all|part|fraction)\s+of(?=\W*\Z)"
    r"|per\s*cent\s+of|but|besides|sqrt|log|ln|exp|sin|cos|tan|abs|floor|ceil"
    r"|instead\s+of|rather\s+than)\b",
    re.I,
)
"""Words that change the value which follows them."""
AFTER = re.compile(
    rf"\b(?:or|{_DOUBT}|{_ARITHMETIC}|{_MULTIPLES}|if|but|though|although|depending|depends|below"
    r"|under|above|least|most|except|excluding|wait|actually|oops|sorry|rather|instead"
    rf"|(?:a|an|one|two|three|\d+)\s+(?:{_ORDINALS})s?|odd|ish|something|give\s+or\s+take"
    r"|wrong|incorrect|mistaken|false"
    r"|more\s+or\s+less|and\s+(?:change|some|counting|up)|upwards?)\b"
    r"|[,.;\-\u2013\u2014\u2026(]\s*(?:no|not|hmm+)\b",
    re.I,
)
"""Words that change the value which they follow."""
_DIRECTLY_AFTER = re.compile(
    r"\s*(?:(?:is|was)\s+not\b|(?:is|was)n't\b|(?:and(?!\s+(?:we|I|so|that|this|it|thus|hence)\b)|not|out|to|over|by|point"
    r"|of\s+\d|x|k|K|M|B|bn|mn|mil|mio|th|st|nd|rd|ths)\b"
    r"|(?:half|quarter|thirds?|fourths?)\b|(?![amgshlLCFNWVJKI]\b)[A-Za-z]\b)"
)
_CHANGING_SIGN = re.compile(
    r"""\s*(?:
      [^\w\s.,;:!?()\[\]{}"'`*_%$€£¥₹°\u201c\u201d\u2018\u2019«»\-\u2013\u2014/\\]
    | [\u0370-\u03ff]
    | [\u00b2\u00b3\u00b9\u2070-\u209f\u00bc-\u00be\u2150-\u215f]
    | \? | !(?=\S)
    | [-\u2013\u2014/]\s*(?:[\d.(\\$+-]|[A-Za-z]\b)
    | \*+\s*[\d.(\\$+\-]
    | \(\s*[-+$]?\.?\d
    | \.\.
    | \\(?![$%\s])
    )
    | [:.,]\d | ! | _[\w{] | \*\w | [\[{(]\s*[-\d] | ['\u2019]
    | ,\s*(?!i\.e)[A-Za-z]\s*(?:[)\]},.]|\Z)
    """,
    re.X,
)
_CHANGING_ANYWHERE = re.compile(r"\\[a-zA-Z]|[\^+\u00d7\u00f7\u00b1\u0370-\u03ff\u2200-\u22ff]")
_GLUED = re.compile(r"[A-Za-zµμΩ]+|\d|_")
_GLUED_UNIT = re.compile(
    r"[mgshLlpcdWVAJNCF]|[kcdm]m|in|ft|yd|mi|[mk]g|gm|lbs?|oz|[mcdk]?[lL]|hrs?|cc|k[WVJN]|k?Hz|am|pm"
    r"|[KkMGT]B|px|pts?|ms|ha|sq|cu"
)
"""Units of one and two letters that may stand close to a number; `5k` and `5x` are not 5."""
_ALTERNATIVE = re.compile(
    r"(?:or|no|nope|wait|maybe|perhaps|possibly|actually|alternatively|but|however|hmm+|oops|sorry"
    r"|rather|correction|not|unless|otherwise|else|and\s+if|if)\b",
    re.I,
)
_RETRACTED = re.compile(
    r"\bwait\b|\bhold on\b|\bscratch that\b|\boops\b|\bcorrection\s*:|\bon second thought"
    r"|\b(?:this|that|it|which|answer|result)(?:\s+(?:is|was|seems|looks|can(?:no|')t\s+be)|'s)\s+"
    r"(?:\w+\s+)?(?:wrong|incorrect|not\s+(?:right|correct)|a\s+mistake|an\s+error)\b"
    r"|\b(?:made|is|was)\s+(?:a|an)\s+(?:mistake|error)\b"
    r"|\blet(?:'s| me| us)\s+(?:\w+\s+)?"
    r"(?:re-?(?:calculate|compute|do|consider|think)|start\s+over)\b",
    re.I,
)
_OR_ELSE = re.compile(
    r"[\s\"'*`$)\].,;]{0,12}or\s+(?:maybe|perhaps|possibly|is\s+it|\W{0,3}\d)", re.I
)
_OF_RETRACTION = (
    "wait", "hold on", "scratch that", "oops", "correction", "second thought", "wrong", "incorrect",
    "not right", "not correct", "mistake", "error", "calc", "redo", "re-", "comput", "consider",
    "rethink", "start over",
)  # fmt: skip
"""Every retraction has one of these: they are found faster than by the pattern."""
_DENIED = re.compile(
    r"(?:n't|\bnot|\bnever|\bcannot|\bwrong|\bincorrect|\bdoubt|\bwhether|\bnobody|\bno\s+one)\b[^.!?\n,;:]{0,40}\Z"
    r"|\b(?:first\s+(?:thought|sight|guess)|at\s+first|initially|originally|previously)\b[^.!?\n]{0,60}\Z",
    re.I,
)
_BOX_BEFORE = re.compile(
    r"(?:(?:\bnot|\bnever|n't|\bmaybe|\bperhaps|\bpossibly|\bor\s+is\s+it)(?:\s+(?:be|is))?|\bhalf(?:\s+of)?"
    r"|\btwice|\bdouble|\btriple|\bminus|\bnegative|\balmost|\bnearly|\b(?:square|cube)\s+root\s+of"
    r"|\b(?:answers?\s+(?:is|are)|either)\s+\W{0,4}[\d.,]{1,20}\W{0,4}\s+or)"
    r"(?:[\s:$*(`\"']|\\[(\[]|\\text\{|\}){0,12}\Z"
)
_OF_CHANGE = (
    "not", "never", "n't", "maybe", "perhaps", "possibly", "half", "twice", "double", "triple",
    "minus", "negative", "almost", "nearly", "root of", "or is", "nswer", "ither",
)  # fmt: skip
_BOX_AFTER = re.compile(
    r"(?:[\s$*,;)`\"'}]|\\[)\],;! ]|\\text\{){0,12}"
    r"(?:or\s+(?:maybe|perhaps|possibly|rather)?[\s$\\(]*\d"
    r"|and/or|maybe|perhaps|possibly|dozen|hundred|thousand|million|billion|squared|cubed|plus\s"
    r"|minus\s|divided\s|out\s+of|unless|vs\b|versus|and\s+(?:a\s+)?(?:half|third|quarter)"
    r"|or\s+(?:more|less|fewer|so)"
    r"|\||\?|to\s+[$\\]*\d)|\^(?!\s*\{?\s*\\circ)",
    re.I,
)


LATEX = re.compile(
    rf"\b(?:{_DENIALS}|no|{_DOUBT}|{_ARITHMETIC}|{_MULTIPLES}|{_BOUNDS}|more|less|than|if|but|wait"
    rf"|out|to|something|odd|ish|thirds|fourths|actually|instead|rather|(?:a|an|one|two|three)\s+(?:{_ORDINALS})s?|and\s*/\s*or)\b",
    re.I,
)
"""Words next to a number within a formula that say more than what it counts."""
_TIMES = re.compile(
    r"(?:(?<=[A-Za-z),] )|\A)"
    r"(?:in|for|by|after|within|on|at|during|before|since|until|over|per|every)"
    r"\s+(?:(?:the|these|those|all|only|about|next|first|last|day|week|month|year)\s+){0,3}"
    r"\$?\d{1,6}\$?(?::\d\d)?[\s-]{0,3}(?:seconds?|minutes?|hours?|days?|weeks?|weekends?|months?"
    r"|years?|nights?|trips?|rounds?|games?|[ap]\.?m\b|o'clock)",
    re.I,
)


def without_times(text: str) -> str:
    """A text without what only says when or how long: `by 5 pm`, `after 3 days`."""
    return _TIMES.sub(" ", text)


def changes_before(text: str) -> bool:
    """Whether the words that directly precede a box change what it holds."""
    if not any(word in text for word in _OF_CHANGE):
        return False
    return _BOX_BEFORE.search(text) is not None


def changes_after_box(text: str) -> bool:
    """Whether what directly follows a box changes what it holds."""
    return _BOX_AFTER.match(text) is not None


def is_denied(before: str) -> bool:
    """Whether the beginning of a sentence takes back what its end states."""
    return _DENIED.search(before) is not None


def is_retracted(following: str) -> bool:
    """Whether a text that follows an answer takes it back: "Wait, that is wrong"."""
    following = following[:4000].casefold()
    if _OR_ELSE.match(following) is not None:
        return True
    if not any(word in following for word in _OF_RETRACTION):
        return False
    return _RETRACTED.search(following) is not None


def changes_after(rest: str) -> bool:
    """Whether what follows a number, to the end of its sentence, changes it.

    Only signs that are known to be harmless may follow, and letters that are a unit.
    """
    glued = _GLUED.match(rest)
    if glued is not None:
        unit = glued.group()
        if len(unit) < 3 and _GLUED_UNIT.fullmatch(unit) is None:
            return True
    return (
        _CHANGING_SIGN.match(rest) is not None
        or _DIRECTLY_AFTER.match(rest) is not None
        or _CHANGING_ANYWHERE.search(rest) is not None
        or AFTER.search(rest) is not None
    )


def has_alternative(following: str) -> bool:
    """Whether the sentences after a statement give another answer: "5. Or 7"."""
    following = following.lstrip(" \t.!?*\"'`)_-\u2013\u2014,;:\u2026")
    return _ALTERNATIVE.match(following) is not None
