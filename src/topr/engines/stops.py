"""Finds the token that completes a stop string. Cutting text is not done here: it stays."""

from bisect import bisect_left
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Says of token sequences whether their last token completed one of some strings.

    Only the tail that can hold a stop string is decoded, so the cost of a token does not grow
    with its position. Special tokens are written out for this check: their text can be a stop
    string too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # A token brings one byte at least. The margin keeps the tail's first tokens, which decode
        # differently without what came before them, out of reach of a match.
        self.tail = max((len(text.encode()) for text in stop), default=0) + 4

    def __bool__(self) -> bool:
        return bool(self._stop)

    def end(self, ids: Sequence[int]) -> int | None:
        """Return how many tokens a completion has that ends with its first stop string.

        Args:
            ids: a whole completion, written by an engine that may have continued after the string.

        Returns:
            The number of its first tokens that hold a stop string; None: it holds none.

        """
        if not self._stop or not self._holds(ids):
            return None
        # A text that holds a string still does when it continues: the first end is found by halves.
        return bisect_left(range(len(ids)), True, key=lambda end: self._holds(ids[:end]))

    def _holds(self, ids: Sequence[int]) -> bool:
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        return any(stop in text for stop in self._stop)

    def completed(self, tails: list[list[int]]) -> list[bool]:
        """Say for each sequence whether it holds a stop string.

        Args:
            tails: the last `tail` token ids, or all where there are fewer, of completions that
                held no stop string one token earlier.

        """
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=False)
        return [any(stop in text for stop in self._stop) for text in texts]
