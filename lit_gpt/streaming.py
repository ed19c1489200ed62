"""Text that comes in parts, up to the first of some strings that end it."""

from collections.abc import Sequence

from lit_gpt.settings import UserError


class Until:
    """Lets text through until one of `stops` has come, wherever the parts begin and end.

    What may yet become one of them is held back. `done` says that one has come: it and all that follows is left out.

    Raises:
        UserError: one of them is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise UserError("--stop: an empty text would end every answer at once; leave it out")
        self.stops, self.done, self._held = stops, False, ""

    def add(self, text: str) -> str:
        """The text that is sure to belong to the answer, possibly none."""
        if self.done:
            return ""
        self._held += text
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        self.done = bool(found)
        sure = min(found) if found else len(self._held) - self._begun()
        text, self._held = self._held[:sure], self._held[sure:]
        return text

    def _begun(self) -> int:
        """Characters at the end with which one of the strings begins."""
        most = min(len(self._held), max(map(len, self.stops), default=1) - 1)
        ends = (self._held[len(self._held) - n :] for n in range(most, 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self.stops)), 0)

    def flush(self) -> str:
        """What is held back, when no more will come."""
        text, self._held = "" if self.done else self._held, ""
        return text
