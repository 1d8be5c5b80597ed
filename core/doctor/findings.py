"""What an examination found: one finding a line, and the table of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.errors import GroundingError

if TYPE_CHECKING:
    from core.doctor.places import Probe

STATUSES = {  # status: how a table shows it
    "pass": "ok",
    "fail": "FAIL",
    "unknown": "cannot tell",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Finding:
    """One line of an examination.

    Attributes:
        line: its name, a key of `core.doctor.LINES`; of the lines about views with the view's name.
        status: "pass"; "fail"; "unknown" where the model does not let itself be asked; "skipped" where the line needs
            something that an earlier line found missing.
        seen: what was measured, in words.
        meaning: of a line that did not pass: what it means for the maps, and what to do.
    """

    line: str
    status: str
    seen: str
    meaning: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings about one model; its text is a table.

    Attributes:
        model: provenance: name, family, dtype, device, attention, geometry.
        findings: in the order of the checks.
        probes: per view and picture, which cells answered to the bright squares.
    """

    model: Mapping[str, Any]
    findings: tuple[Finding, ...]
    probes: tuple[Probe, ...] = field(default=(), repr=False)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The lines that failed."""
        return tuple(each for each in self.findings if each.status == "fail")

    @property
    def passed(self) -> bool:
        """Whether no line failed. Lines that cannot tell are no failures; read them."""
        return not self.failed

    def require(self) -> None:
        """Stop where a line failed.

        Raises:
            GroundingError: names the failed lines and what they mean.
        """
        if self.failed:
            told = "; ".join(f"{each.line}: {each.seen}. {each.meaning}" for each in self.failed)
            raise GroundingError(f"the maps of {self.model['name_or_path']} are not to be trusted: {told}")

    def headline(self) -> str:
        """The model, and how many lines came out how."""
        counts = {status: sum(each.status == status for each in self.findings) for status in STATUSES}
        told = ", ".join(f"{count} {STATUSES[status]}" for status, count in counts.items() if count)
        return f"{self.model['name_or_path']} ({self.model['family']}, {self.model['dtype']}): {told}"

    def __str__(self) -> str:
        width = max((len(each.line) for each in self.findings), default=0)
        shown = max(len(text) for text in STATUSES.values())
        lines = [self.headline()]
        for each in self.findings:
            lines.append(_wrapped(f"{STATUSES[each.status]:<{shown}}  {each.line:<{width}}  ", each.seen))
            if each.meaning:
                lines.append(_wrapped(" " * (shown + width + 4), each.meaning))
        return "\n".join(lines)


def _wrapped(head: str, text: str) -> str:
    wrapped = textwrap.wrap(text, width=max(40, 120 - len(head))) or [""]
    return head + f"\n{' ' * len(head)}".join(wrapped)
