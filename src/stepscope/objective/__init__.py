"""The loss as a function of the parameters, of a model that is made measurable and left exactly as it was."""

from stepscope.objective import dtensors
from stepscope.objective.batches import digest, moved
from stepscope.objective.checks import check_before, check_model, check_parameters, form_of, reached
from stepscope.objective.fsdp import is_gathered, resharded
from stepscope.objective.interrupts import held
from stepscope.objective.loss_calls import LossFunction, is_out_of_memory, model_output
from stepscope.objective.loss_denominators import IGNORED_LABEL, averaged_over, predicts_next_token
from stepscope.objective.measurable import HALF
from stepscope.objective.objective import Objective, check_objective
from stepscope.objective.plain_model import PlainModel
from stepscope.objective.process_group import Ranks, is_known_to_all
from stepscope.objective.randomness import random_state
from stepscope.objective.reading import reading
from stepscope.objective.sharded_model import ShardedModel, model_of_ranks
from stepscope.objective.sharding import sharded
from stepscope.objective.state import State
from stepscope.objective.switches import emptied
from stepscope.objective.vectors import Direction, UnitDirection, accumulator
from stepscope.objective.writes import WatchedWrites, memory_of

__all__ = [
    "HALF",
    "IGNORED_LABEL",
    "Direction",
    "LossFunction",
    "Objective",
    "PlainModel",
    "Ranks",
    "ShardedModel",
    "State",
    "UnitDirection",
    "WatchedWrites",
    "accumulator",
    "averaged_over",
    "check_before",
    "check_model",
    "check_objective",
    "check_parameters",
    "digest",
    "dtensors",
    "emptied",
    "form_of",
    "held",
    "is_gathered",
    "is_known_to_all",
    "is_out_of_memory",
    "memory_of",
    "model_of_ranks",
    "model_output",
    "moved",
    "predicts_next_token",
    "random_state",
    "reached",
    "reading",
    "resharded",
    "sharded",
]
