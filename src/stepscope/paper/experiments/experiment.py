"""What an experiment is; what runs or continues any of them is in `stepscope.paper.experiments.jobs`."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from torch import nn

from stepscope.paper.experiments.command_lines import Entry
from stepscope.paper.report.experiment_page import tables_page
from stepscope.paper.report.terminal import model_and_data
from stepscope.paper.tasks import Task
from stepscope.report import Cell, Figure, Table, print_tables
from stepscope.runs import Record
from stepscope.runs.records import AnyRecord

Wanted = TypeVar("Wanted", bound=Record)

Progress = Callable[[float, str], None]
"""Called with the part of the whole that has been done (0 to 1), and what is going on."""


class Unit(NamedTuple):
    """A part of an experiment that is measured on its own: one training, or what needs none.

    Attributes:
        label: what progress and errors call it.
        task: the name of its task; None if it needs none.
        seed: of the task's weights and batches; None if it draws its own.
        optimizer: the one that trains.
        piece: what of the unit it is, if it is a piece of one (`Experiment.pieces`).
        share: the least part of the unit's work that it is.
    """

    label: str
    task: str | None = None
    seed: int | None = None
    optimizer: str = ""
    piece: Any = None
    share: float = 1.0


@dataclass(frozen=True)
class Asked:
    """What is asked for of a whole reproduction.

    Attributes:
        scale: the size of all runs.
        seeds: of each run.
        settings: ``"text"``, ``"code"`` or ``"ours"``: `stepscope.paper.experiments.compared_optimizers.SETTINGS`.
        sources: ``{task: where its data come from}``, of all tasks.
        tasks: those along whose trainings directions are measured.
        released: names in `stepscope.paper.experiments.command_lines.RELEASED`: in what all is as the published code
            has it.
    """

    scale: str
    seeds: tuple[int, ...]
    settings: str
    sources: Mapping[str, str]
    tasks: tuple[str, ...]
    released: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment(ABC, Generic[AnyRecord]):
    """What is measured, and what is shown of it; generic in the type of its records.

    An instance holds all that determines the records. A run is measured unit by unit: what a unit is missing depends on
    the records alone, so a run that was stopped goes on where they end. What is shown is a pure function of the
    records, so it belongs to the class.

    Attributes:
        entry: its name, help and options.
        record: the type of its records.
        counted: what its records are called, in the plural.
        terms: what a reader of its page has to know of the words that are used.
        one_thread: whether its models lose more to waiting threads than they gain, also at the scales for a GPU.
        writes_figures: whether its command writes each figure as a PDF beside the records.
        scale: name of the size.
    """

    entry: ClassVar[Entry]
    record: ClassVar[type[Any]]
    counted: ClassVar[str] = "records"
    terms: ClassVar[Mapping[str, str]] = {}
    one_thread: ClassVar[bool] = True
    writes_figures: ClassVar[bool] = False

    scale: str

    # What is measured.

    @property
    def run_name(self) -> str:
        """The name of its run directory."""
        return self.entry.name

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        return {"experiment": self.entry.name, **asdict(self)}

    def check(self) -> None:
        """Refuses settings that don't fit, before anything is prepared.

        Raises:
            UsageError: they don't.
        """

    @abstractmethod
    def data_sources(self) -> Mapping[str, str]:
        """``{task: where its data come from}``, of the tasks whose data are loaded."""

    @abstractmethod
    def make_task(self, name: str, source: str) -> Task:
        """A task with data from a source; each unit takes it with the weights of its own seed.

        Raises:
            UsageError: there are no data.
        """

    @abstractmethod
    def context(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        """What a reader of the records has to know beside the configuration.

        Args:
            tasks: those of `data_sources`, by name.

        Returns:
            A description of the only task, or one of each under ``"tasks"`` (see `described`).
        """

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """All of them, in the order in which they are measured."""

    def pieces(self, unit: Unit, records: Iterable[AnyRecord]) -> Sequence[Unit]:  # noqa: ARG002
        """What of a unit can be measured by itself by now, or was: the unit, where nothing less can.

        Pieces don't depend on one another, but those that will come depend on the records of these.

        Args:
            unit: one of `units`.
            records: all that the run has so far.
        """
        return [unit]

    def in_order(self, records: Sequence[AnyRecord]) -> list[AnyRecord]:
        """Records of jobs, which are in the order of the jobs, in the order in which one process makes them."""
        return list(records)

    @abstractmethod
    def missing(self, unit: Unit, records: Iterable[AnyRecord]) -> Sequence[Any]:
        """What a unit has to measure, such as the records without what is measured; empty when it is complete."""

    @abstractmethod
    def measure(
        self, unit: Unit, task: Task | None, records: Sequence[AnyRecord], progress: Progress
    ) -> Iterator[Sequence[AnyRecord]]:
        """Measures what a unit is missing.

        Args:
            unit: which one.
            task: its own, with fresh weights; None if it needs none.
            records: all that the run has so far.
            progress: told how far this unit is.

        Yields:
            Records, as soon as they are measured; those of one list are written together.

        Raises:
            UsageError: it can't be measured, as where a training diverges; other units are measured all the same.
        """

    @staticmethod
    def not_in(records: Iterable[Record], wanted: Iterable[Wanted]) -> list[Wanted]:
        """Those of the wanted records that are not there yet, by their `Record.key`."""
        done = {record.key for record in records}
        return [record for record in wanted if record.key not in done]

    # What is shown.

    @classmethod
    @abstractmethod
    def tables(cls, records: Sequence[AnyRecord]) -> list[Table]:
        """The tables that hold anything; their names differ."""

    @classmethod
    def figures(cls, records: Sequence[AnyRecord]) -> list[Figure]:  # noqa: ARG003
        """The figures, whether or not everything that they show was measured; their names differ."""
        return []

    @classmethod
    def numbers(cls, records: Sequence[AnyRecord]) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:  # noqa: ARG003
        """The tables as numbers for other programs, one fact a row: headers, and rows; none for tables of counts."""
        return (), []

    @classmethod
    def conclusion(cls, records: Sequence[AnyRecord]) -> str:
        """One sentence on what the records say."""
        return f"{len(records):,} measurements."

    @classmethod
    def highlighted(cls, records: Sequence[AnyRecord]) -> list[str]:  # noqa: ARG003
        """The optimizers that a page can highlight."""
        return []

    @classmethod
    def page(cls, head: Mapping[str, Any], records: Sequence[AnyRecord]) -> str:
        """The page of one run, as HTML that fetches nothing.

        Args:
            head: the content of `run.json`.
            records: the measurements.

        Raises:
            MissingExtraError: altair, vl-convert or jinja2 is not installed.
        """
        tables, figures = cls.tables(records), cls.figures(records)
        return tables_page(head, cls.conclusion(records), tables, figures, cls.highlighted(records), cls.terms)

    @classmethod
    def show(cls, head: Mapping[str, Any], records: Sequence[AnyRecord]) -> None:
        """Prints what was measured, on what.

        Args:
            head: the content of `run.json`.
            records: the measurements.

        Raises:
            MissingExtraError: rich is not installed.
        """
        for line in model_and_data(head["context"]):
            print(line)
        print_tables(cls.tables(records))
        print(cls.conclusion(records))

    # How it is asked for.

    @classmethod
    @abstractmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """The experiment that the options of the command line ask for.

        Raises:
            UsageError: they ask for what isn't there.
        """

    @classmethod
    def of_reproduction(cls, asked: Asked) -> list[Self]:  # noqa: ARG003
        """The runs that `stepscope reproduce` makes of it.

        Raises:
            UsageError: an unknown scale or setting, or seeds that can't be used.
        """
        return []

    @property
    def extent(self) -> str:
        """How much is measured, in words."""
        return f"{len(self.units())} units"


def described(task: Task, title: str, seeds: Sequence[int] = ()) -> dict[str, Any]:
    """What a reader has to know of a task.

    Args:
        task: the task.
        title: what its kind of model is called, such as ``"T5"``.
        seeds: of the units. A model that is pretrained on the spot is pretrained for each here, and how far is told.
    """
    count = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    pretrained = [{"seed": seed, **(task.seeded(seed).pretraining or {})} for seed in seeds if task.pretraining]
    embedding = sum(p.numel() for p in input_embedding.parameters()) if (input_embedding := _embedding(task)) else 0
    return {
        "source": asdict(task.source),
        "model": {
            "title": f"{title} of {count:,} parameters",
            "initialisation": task.initialisation,
            "parameters": count,
            **({"embedding": embedding / count} if embedding else {}),
        },
        "evaluation": {"examples": sum(len(batch["labels"]) for batch in task.eval_batches)},
        **({"pretraining": pretrained} if pretrained else {}),
    }


def _embedding(task: Task) -> nn.Module | None:
    """What a text model looks its tokens up in."""
    return next((module for module in task.model.modules() if isinstance(module, nn.Embedding)), None)
