"""What a completion says after its answer, or about it: remarks, and where a next question begins.

Text in, yes or no or a place out. What states an answer is `topr.grading.statements`'s business.
"""

import re

_PRECISION = (
    r"(?:the\s+nearest|\S{1,12}\s+(?:decimals?|significant|places?|digits?|figures?|d\.?p|s\.?f)\b)"
)
_REMARK = re.compile(
    r"[\s*_\"'(]*(?:(?:now|also|indeed|clearly|thus|therefore|hopefully|quite|very|both|already|fully"
    r"|the|then|just|only|always|likely|probably|strictly|certainly|definitely)\s+){0,3}"
    r"(?:(?:correct|right|verified|valid|clear|unclear|reasonable|sensible"
    r"|consistent|plausible|confirmed|complete|checked|above|below|boxed|exact(?!ly)|final|obvious"
    r"|simple|easy|unique|what|see|same|as\s+\w+|in\s+(?!fact|total|all)\w+|based"
    r"|(?:rounded|expressed|written|given|stated|reported|accurate|correct|precise|good)\s+(?:up\s+)?to\s+"
    rf"{_PRECISION}"
    r"|rounded|expressed"
    r"|found|(?:given|shown|stated|listed|written|derived|obtained|explained)\s+(?:above|below|in"
    r"|here|earlier|already|as|by\s+(?:the|this|our))|(?:positive|negative)(?!\s*\W{0,3}\s*[\w\d])"
    r"|(?:positive|negative)\s+(?:because|since|as|for)|because|since|important|wrong|incorrect"
    # bounds
    r"|(?:smaller|less|larger|bigger|greater|more|fewer|higher|lower|closer?|nearer?|next)\s+(?:than|to)"
    r"|between|at\s+(?:most|least)|under|beyond|over|within|up\s+to|no\s+(?:more|less|fewer)\s+than"
    # properties
    r"|accurate|precise|divisible|bounded|limited|restricted|supported"
    r"|an?\s+(?:multiple|factor|divisor|\S{1,12}[- ]digits?|number\s+(?:between|with|of))"
    r"|\W{0,3}[\d.]{1,9}\s?(?:\\?%|percent)?\s*(?:certain|sure|likely|confident|accurate|reliable|correct)"
    r"|of\s+the\s+form)\b|(?:accurate|precise)\W)",
    re.I,
)


def is_remark(stated: str) -> bool:
    """Whether a sentence only speaks of the answer: `correct`, `less than 68`, `in dollars`."""
    return _REMARK.match(stated) is not None


_QUESTION_WORD = (
    "question|problem|exercise|example|task|instruction|input|prompt|query|puzzle|riddle"
    "|问题|题目|问|例题|例|вопрос|задача|pregunta|problema|frage|aufgabe|exemple|domanda|pergunta"
)
_ROLE = (
    "user|human|assistant|system|student|teacher|tutor|professor|instructor|interviewer|interviewee"
    "|customer|client|player|speaker|person|me|you|bot|ai|chatbot|agent|alice|bob|mom|dad|parent|child"
)
_NEXT_QUESTION = re.compile(
    r"\n[ \t>#*_\[-]{0,12}(?:\d{1,3}[.)][ \t]{0,4})?"
    r"(?:(?:the|a|an|here is|here's|now)[ \t]{1,4}){0,2}"
    r"(?:(?:next|new|another|similar|follow-?up|bonus|word|math|practice|sample|related)"
    r"[ \t]{1,4})?"
    rf"(?:(?:{_QUESTION_WORD}|{_ROLE}(?=[ \t]?[\dA-Z]?[*_]{{0,3}}(?:[:：]|\n))|follow-?up)"
    r"(?![a-z])[ \t]{0,4}"
    r"(?:\([^()\n]{1,30}\)|(?:no\.?|number|nr\.?)?[ \t]{0,4}"
    r"#?(?:\d{1,4}[a-z]?|[A-Z])[.)\]]?(?![a-z])|\])?"
    r"[*_]{0,3}[ \t]{0,4}(?:[:：—]|(?:(?<=[\d.)\]])|(?<=[\d.)\]]\*\*))[ \t]|\n|\Z)"
    r"|Q[ \t]?\d{0,4}[*_]{0,3}[ \t]{0,4}[:：.)])"
    r"|\n[ \t]{0,4}(?:now,?[ \t]{1,4})?(?:let(?:'s| us)[ \t]{1,4})?"
    r"(?:try|do|solve|look at|move on to|answer|consider)[ \t]{1,4}"
    r"(?:this|another|the next|the following|a new)\b",
    re.I,
)
"""A line that announces a question, or whose turn it is."""
_ASKED = re.compile(r"\?[\"')*_]{0,3}[ \t]*(?=\n)")
_ASKS = re.compile(
    r"(?:\bhow\s+(?:many|much|long|far|old|tall|fast|big)|\bwhat\s+(?:is|was|are|will|would|percent\w*|fraction)"
    r"|\bwho|\bwhich|\bfind\b|\bwhen\b|\bwhere\b)[^?\n]{5,300}\Z",
    re.I,
)
_OF_ITSELF = re.compile(r"\b(?:I|we|answer|correct|right|this|that|it|wrong|mistake|check)\b")


def next_question(text: str, position: int) -> int | None:
    """Where a next question begins after a position; None where none does.

    It is announced, or it is a separate paragraph that asks for a number and is not about the
    answer: a model that runs on into the next example of its prompt is judged by its own answer.
    """
    announced = _NEXT_QUESTION.search(text, position)
    end = len(text) if announced is None else announced.start()
    for match in _ASKED.finditer(text, position, end):
        nearest = max(position, match.start() - 320)
        line = max(nearest, text.rfind("\n", nearest, match.start()) + 1)
        asks = _ASKS.search(text, line, match.start())
        if asks is not None and _OF_ITSELF.search(asks.group()) is None:
            begin = text.rfind("\n\n", max(position, match.start() - 1500), match.start())
            if begin >= 0:
                return begin
    return None if announced is None else announced.start()
