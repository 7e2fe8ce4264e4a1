"""Progress bars of long calls."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm


class ProgressBar:
    """A bar on stderr that disappears when it is done.

    show: True, False, or None for "where stderr is a terminal".
    """

    def __init__(self, description: str, total: float | None, unit: str, show: bool | None) -> None:
        self._bar: Any = tqdm(
            desc=description,
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            unit_divisor=1024,
            leave=False,
            disable=None if show is None else not show,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, amount: float) -> None:
        """Moves the bar by `amount` units."""
        self._bar.update(amount)

    def set_total(self, total: float) -> None:
        """Sets the length of the bar, where it was not known before."""
        self._bar.total = total

    def move_to(self, position: float, note: str = "") -> None:
        """Puts the bar at `position`; bars may move back after a reconnect."""
        self._bar.n = position
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.refresh()
