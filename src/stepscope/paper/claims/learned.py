"""What the verdicts say together, in a paragraph that is made of them alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from stepscope.paper.claims.beside import Other
from stepscope.paper.claims.ladder import climbed, climbed_in_words
from stepscope.paper.claims.verdicts import FAILS, HOLDS, STARTS, UNCLEAR, JudgedClaim, Judgment

_SAID = {
    HOLDS: ("holds", "hold"),
    FAILS: ("does not hold", "do not hold"),
    UNCLEAR: ("cannot be told", "cannot be told"),
}


def learned(claims: Sequence[JudgedClaim], others: Sequence[Other] = ()) -> str:
    """The verdicts from each start, what the start turns, what a weaker reading and what other seeds change.

    Args:
        claims: those of a reproduction.
        others: reproductions that stand beside.

    Returns:
        Some sentences; the numbers behind them stand in the tables.

    Example:
        >>> learned([])
        'Nothing has been measured yet.'
    """
    sentences = [*_by_start(claims), *_turned(claims), *_read_weaker(claims), *_unstable(claims, others)]
    return " ".join([*sentences, *climbed_in_words(climbed(claims, others))]) or "Nothing has been measured yet."


def _by_start(claims: Sequence[JudgedClaim]) -> Iterator[str]:
    for start in (*STARTS, ""):
        own = {claim.id: judgment.verdict for claim in claims if (judgment := _strict(claim, start)) and judgment.parts}
        where = f"From {start} weights" if start else "Whatever the weights,"
        clauses = [
            f"{_list(ids)} {_SAID[verdict][len(ids) > 1]}"
            for verdict in _SAID
            if (ids := [claim for claim, said in own.items() if said == verdict])
        ]
        if clauses:
            yield f"{where} {'; '.join(clauses)}."


def _turned(claims: Sequence[JudgedClaim]) -> Iterator[str]:
    """Claims that are another thing from each start."""
    same = []
    for claim in claims:
        pretrained, random = (_strict(claim, start) for start in STARTS)
        if pretrained is None or random is None:
            continue
        if pretrained.verdict == random.verdict:
            same.append(claim.id)
        else:
            one, other = (_SAID[judgment.verdict][0] for judgment in (pretrained, random))
            yield f"The start matters to {claim.id}: from pretrained weights it {one}, from random ones it {other}."
    if same:
        yield f"It changes no verdict of {_list(same)}."


def _read_weaker(claims: Sequence[JudgedClaim]) -> Iterator[str]:
    for claim in claims:
        for judgment in claim.judgments:
            strict = _strict(claim, judgment.start)
            if judgment.reading and strict and judgment.verdict != strict.verdict:
                said, start = _SAID[judgment.verdict][0], f" from {judgment.start} weights" if judgment.start else ""
                yield f"Read as the {judgment.reading}, {claim.id} {said}{start}."


def _unstable(claims: Sequence[JudgedClaim], others: Sequence[Other]) -> Iterator[str]:
    again = [
        (claim.id, said.verdict != judgment.verdict)
        for claim in claims
        for judgment in claim.judgments
        for other in others
        if other.repeats(claim, judgment) and (said := other.on(claim, judgment))
    ]
    changed = dict.fromkeys(claim for claim, other in again if other)
    if changed:
        yield f"Other seeds changed verdicts of {_list(changed)}: they are unstable."
    elif again:
        yield f"Other seeds gave the same verdicts of {_list(dict.fromkeys(claim for claim, _ in again))}."


def _strict(claim: JudgedClaim, start: str) -> Judgment | None:
    return next((own for own in claim.judgments if own.start == start and not own.reading), None)


def _list(names: Iterable[str]) -> str:
    """In words: a comma between, and *and* before the last.

    Example:
        >>> _list(["a"]), _list(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
