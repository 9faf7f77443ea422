"""Task metrics: a function of the user's runs a model and says how good it is at what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.callables import find_callable, is_callable_name
from rewriter.verify.running import first_line
from rewriter.verify.validation import TaskReport

__all__ = ["Task", "Tasks", "load_tasks", "measure_task"]

Run = Callable[..., tuple[Any, ...]]
"""A model: inputs in the order of its signature, as arrays or tensors, to a flat tuple of outputs."""

Task = Callable[[Run], float | Mapping[str, float]]
"""Runs a model on data of its own and returns one number, or several by name."""

Tasks = Mapping[str, Task] | Iterable[str | Task]
"""Tasks by name; or callables and texts, ``[NAME=]module:callable`` or ``[NAME=]zoo:MODEL``."""

ZOO = "zoo:"


def load_tasks(tasks: Tasks | None) -> dict[str, Task]:
    """Return tasks by name; a callable that was given no name has its own.

    Raises
    ------
    InputError
        When a text names nothing that can be called, or two have one name.
    """
    if tasks is None:
        return {}
    if isinstance(tasks, Mapping):
        return dict(tasks)
    found: dict[str, Task] = {}
    for item in [tasks] if isinstance(tasks, str) else tasks:
        name, task = _named(item)
        if name in found:
            raise InputError(f"task {name!r} is given twice; name one of them NAME=module:callable")
        found[name] = task
    return found


def measure_task(name: str, task: Task, original: Program, rewritten: Program) -> tuple[TaskReport, ...]:
    """Measure both models with a task.

    Raises
    ------
    InputError
        When it fails, returns no number, or measures different things of the two.
    """
    before, after = _measured(name, task, original), _measured(name, task, rewritten)
    if before.keys() != after.keys():
        raise InputError(f"task {name}: {_listed(before)} of the original, {_listed(after)} of the other")
    return tuple(TaskReport(key, before[key], after[key]) for key in before)


def _named(item: str | Task) -> tuple[str, Task]:
    if not isinstance(item, str):
        return getattr(item, "__name__", type(item).__name__), item
    name, sign, spec = item.rpartition("=")
    if spec.startswith(ZOO):
        return name or spec.removeprefix(ZOO), _zoo_task(spec.removeprefix(ZOO))
    if (sign and not name) or not is_callable_name(spec):
        raise InputError(f"task {item!r}: expected [NAME=]module:callable or [NAME=]{ZOO}MODEL")
    return name or spec.partition(":")[2], find_callable(spec, "task")


def _zoo_task(model: str) -> Task:
    from rewriter import models_zoo

    return models_zoo.load(model).measure


def _measured(name: str, task: Task, program: Program) -> dict[str, float]:
    try:
        found = task(program.run)
    except InputError:
        raise
    except Exception as error:  # the user's own function raises what it likes
        raise InputError(
            f"task {name} failed on {program.source}: {type(error).__name__}: {first_line(error)}"
        ) from error
    numbers = found if isinstance(found, Mapping) else {name: found}
    try:
        return {str(key): float(value) for key, value in numbers.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"task {name} returned {type(found).__name__}; expected a number or numbers by name"
        ) from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
