"""The processes that evaluate one objective together: what they exchange, and that they agree before they go on.

Each rank evaluates micro-batches of its own. What is decided from the results must be decided alike on all ranks, or
they wait for one another forever. So all results that decisions depend on are gathered, and are the same to the bit on
all ranks: sums are made of what was gathered, in the order of the ranks, never by a reduction in an order of its own.

Each exchange begins with a few numbers that say what it is and whether all is well. Where a rank has failed on its own,
all fail with its message, at whatever exchange they are. An error that all know of needs no further exchange: the same
`agreed` blocks are left by all. Where ranks are at different exchanges and none has failed, or where one doesn't
answer, nothing that they do together from then on can be right: `OutOfStepError` ends them.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stepscope.errors import UsageError, said
from stepscope.objective import vectors
from stepscope.objective.absences import Absences
from stepscope.objective.vectors import Direction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LONGEST = 600
"""Bytes of an error message that is sent to all ranks."""

_KNOWN = "stepscope: known to all ranks"
"""An attribute of errors."""


class OutOfStepError(BaseException):
    """Ranks are at different places of what they do together, or one is gone.

    No later collective could be trusted, a training's neither. So this is no `Exception`, and whatever handles those
    passes it on: the process ends with its message.
    """


class Ranks:
    """The ranks of a process group, or this process alone.

    Args:
        group: the process group; ``None`` for this process alone, which exchanges nothing.
        device: where what is exchanged lies: that of the parameters.
        part: ranks of the same part bring the same micro-batches, which count once; ``None``: each brings its own.

    Attributes:
        alone: whether there is no group.
        rank: of this process in the group.
        size: of the group.
        parts: how many ranks bring micro-batches of their own.
        part: see there; the rank itself where each brings its own.

    Example:
        >>> ranks = Ranks(None, torch.device("cpu"))
        >>> ranks.concatenated([1.0, 2.0]), ranks.size
        ([1.0, 2.0], 1)
    """

    def __init__(self, group: ProcessGroup | None, device: torch.device, part: int | None = None) -> None:
        self.alone = group is None
        self._group, self._device = group, device
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())
        if self.rank < 0:
            raise UsageError("this process isn't in the process_group: make the Objective on the group's ranks alone")
        self._absences = None if group is None else Absences(group, patient=device.type != "cpu")
        self.part = self.rank if part is None else part
        self._counted, self._own = list(range(self.size)), self.rank
        if part is not None:
            parts = [int(own) for [own] in self._gathered([float(part)])]
            self._counted = sorted({parts.index(own) for own in parts}, key=lambda first: parts[first])
            self._own = parts.index(part)
        self.parts = len(self._counted)

    @contextmanager
    def agreed(self, what: str, expected: type[Exception] = UsageError) -> Iterator[None]:
        """Inside, each rank works alone and exchanges nothing. If one of them fails, all do, by an error of one kind.

        Args:
            what: is done inside, the same words on all ranks.
            expected: a kind of error that callers may handle, beside `UsageError`.

        Raises:
            UsageError: another rank has raised one. The message is that rank's.
            KeyboardInterrupt: Ctrl-C was pressed on another rank.
            RuntimeError: another rank has raised anything else.
            OutOfStepError: another rank isn't here, or doesn't answer.
        """
        if self.alone:
            yield
            return
        try:
            yield
        except OutOfStepError:
            raise
        except BaseException as error:
            if not is_known_to_all(error):
                self._begin(what, error=error, expected=expected)
            raise
        self._begin(what, expected=expected)

    def meet(self, what: str) -> None:
        """All ranks come here, or those that do say who doesn't.

        Args:
            what: they come to, a name that a user knows.

        Raises:
            UsageError: a rank has left; nobody is waited for.
            OutOfStepError: another rank is elsewhere, or doesn't come.
        """
        if self._absences is None:
            return
        if left := self._absences.left():
            raise UsageError(f"{left}: nothing is measured without it")
        self._begin(what)

    def leave(self, why: str) -> None:
        """This rank comes to nothing any more.

        Args:
            why: what it has done, after "rank 1".
        """
        if self._absences is not None:
            self._absences.leave(why)

    def left(self) -> str:
        """Which rank has left, and why; empty where none has, as far as is known."""
        return "" if self._absences is None else self._absences.left()

    def check_failed_alike(self, error: BaseException, place: Any) -> None:
        """In the middle of what all ranks do together, this one has failed: all may go on if all have, in one place.

        Otherwise the others wait for this rank in the middle of it, until the time-out of the group.

        Args:
            error: this rank's.
            place: where that was; the same on all ranks where they have done the same together until then.

        Raises:
            OutOfStepError: ranks have failed in different places, or one doesn't answer.
        """
        if self.alone or is_known_to_all(error) or isinstance(error, OutOfStepError):
            return
        if isinstance(error, Exception):
            what = f"rank {self.rank} failed in the middle of what all ranks do together"
            try:
                self._begin(f"{what} ({_text_of(error)})", number_of(place), error=error, together=True)
            except OutOfStepError:
                raise OutOfStepError(f"{what}, and others elsewhere: {_text_of(error)}") from error
        _make_known(error)  # a second Ctrl-C doesn't wait: this process ends

    def concatenated(self, values: Sequence[float]) -> list[float]:
        """The numbers of all ranks, one rank after another; of ranks of the same part, the first one's."""
        if self.alone:
            return list(values)
        counts = self._begin("numbers", len(values))
        longest = max(counts)
        gathered = self._gathered([*values, *[0.0] * (longest - len(values))]) if longest else [[]] * self.size
        return [value for rank in self._counted for value in gathered[rank][: counts[rank]]]

    def digest(self, own: str | None) -> str | None:
        """One digest of those of all ranks; ``None`` where a rank has none."""
        if self.alone:
            return own
        everyone = self.concatenated([math.nan if own is None else number_of(own)])
        return None if any(map(math.isnan, everyone)) else hashlib.sha256(repr(everyone).encode()).hexdigest()

    def before(self, count: int) -> int:
        """The sum of a count over the ranks before this one, whose numbers `concatenated` puts before this one's."""
        if self.alone:
            return 0
        counts = self._begin("counts", count)
        return sum(counts[rank] for rank in self._counted[: self._counted.index(self._own)])

    def check_same(self, what: str, values: Sequence[float], remedy: str, *, among: float = 0.0) -> None:
        """Refuses numbers that aren't the same on all ranks, to the bit.

        Args:
            what: they are of.
            values: equally many on all ranks.
            remedy: what to do where they differ.
            among: only ranks that give the same number here are compared.

        Raises:
            UsageError: they differ, on all ranks.
        """
        if self.alone:
            return
        if len(set(self._begin(what, len(values)))) == 1:
            gathered = self._gathered([among, *values])
            kinds = {struct.pack(f"{len(own)}d", *own) for own in gathered}
            if len(kinds) == len({own[0] for own in gathered}):
                return
        raise UsageError(f"the ranks of the process group differ in {what}: {remedy}")

    def summed(self, direction: Direction, parameters: Mapping[str, Tensor]) -> Direction:
        """The sum of a direction over ranks; a tensor that some ranks don't have is zero there.

        Args:
            direction: this rank's; its tensors are overwritten.
            parameters: all names, in the same order on all ranks.
        """
        if self.alone:
            return direction
        self._begin("a sum", len(parameters))
        present = [max(own) for own in zip(*self._gathered([float(n in direction) for n in parameters]), strict=True)]
        total = Direction()
        for there, (name, parameter) in zip(present, parameters.items(), strict=True):
            if there:
                own = direction.get(name)
                total[name] = torch.zeros_like(parameter) if own is None else own.detach().contiguous()
                with _answered():
                    torch.distributed.all_reduce(total[name], group=self._group)
        return total

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Gives all ranks the first one's content of some tensors, in place."""
        if self.alone:
            return
        self._begin("tensors", len(tensors))
        for tensor in tensors:
            with _answered():
                torch.distributed.broadcast(tensor, group=self._group, group_src=0)

    def broadcast(self, text: str, rank: int) -> str:
        """What one rank says, on all of them."""
        if self.alone:
            return text
        encoded = text.encode()[:_LONGEST].ljust(_LONGEST)
        message = torch.tensor(list(encoded), dtype=torch.uint8, device=self._device)
        with _answered():
            torch.distributed.broadcast(message, group=self._group, group_src=rank)
        return bytes(message.tolist()).decode(errors="ignore").strip()

    def _begin(
        self,
        what: str,
        count: float = 0,
        *,
        error: BaseException | None = None,
        expected: type[Exception] = UsageError,
        together: bool = False,
    ) -> list[int]:
        """Begins an exchange: all ranks say which, how it went so far, and a count. Gives all counts.

        Args:
            what: the exchange; a sentence, if `together`.
            count: of this rank.
            error: by which it has failed.
            expected: see `agreed`.
            together: whether that was inside of what all do together.
        """
        kinds = (None, expected, UsageError, RuntimeError, KeyboardInterrupt)
        own = 0 if error is None else next((n for n in (1, 2, 4) if isinstance(error, kinds[n] or ())), 3)
        own = 2 if own == 1 and expected is UsageError else own
        exchange = "a failure" if together else what
        sentence = what if together else f"all ranks have to come to {what!r}"
        everyone = self._gathered([number_of(exchange), float(own), float(count)], sentence)
        same = len({exchange for exchange, _, _ in everyone}) == 1
        worst, first = max((int(kind), -rank) for rank, (_, kind, _) in enumerate(everyone))
        if not worst and not same:
            raise OutOfStepError(
                f"the ranks of the process group are out of step, and this one is at {what!r}: let all make the same "
                "steps, and call what measures in the same order"
            )
        if kind := kinds[worst]:
            text = self.broadcast(_text_of(error) if error is not None else "", -first)
            if together and same and len({place for _, _, place in everyone}) > 1:
                raise OutOfStepError(f"rank {-first}: {text}")
            if own < worst:
                raise _make_known(kind(f"rank {-first}: {text}")) from error
            _make_known(error)
        return [int(number) for _, _, number in everyone]

    def _gathered(self, values: Sequence[float], sentence: str = "") -> list[list[float]]:
        """The numbers of each rank, equally many; a sentence says where ranks are that meet here."""
        own = torch.tensor(values, dtype=torch.float64, device=self._device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        with _answered():
            if sentence:
                work = torch.distributed.all_gather(everyone, own, group=self._group, async_op=True)
                assert self._absences is not None
                self._absences.wait(work, sentence)
            else:
                torch.distributed.all_gather(everyone, own, group=self._group)
        return [numbers.tolist() for numbers in everyone]


@contextmanager
def _answered() -> Iterator[None]:
    """Around an exchange: where it fails, a rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise OutOfStepError(f"a rank of the process group didn't answer ({said(error)})") from error


def is_known_to_all(error: BaseException | None) -> bool:
    """Whether all ranks know of an error, or of the one that it was made of.

    Example:
        >>> is_known_to_all(ValueError("of this rank"))
        False
    """
    while error is not None:
        if _KNOWN in vars(error):
            return True
        error = error.__cause__
    return False


def _make_known(error: Any) -> Any:
    vars(error)[_KNOWN] = True
    return error


def number_of(value: Any) -> float:
    """A number that is the same for what looks the same, exact in double precision.

    Example:
        >>> number_of(("weight", (3, 2))) == number_of(("weight", (3, 2))), number_of("a") == number_of("b")
        (True, False)
    """
    return float(int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:6]))


def checksum(tensors: Mapping[str, Tensor]) -> list[float]:
    """Three numbers that are the same for the same tensors, and hardly for others: names, norm, and a sum.

    Example:
        >>> a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 1.0])}
        >>> checksum(a) == checksum(a), checksum({"w": -a["w"]})[1:] == checksum(a)[1:]
        (True, False)
    """
    sums = vectors.numbers(t.detach().sum(dtype=vectors.accumulator(t)) for t in tensors.values()) if tensors else []
    return [number_of(list(tensors)), vectors.norm(tensors), sum(n * value for n, value in enumerate(sums, 1))]


def _text_of(error: BaseException) -> str:
    return str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {said(error)}"
