"""What the command lines of all jobs have in common: recipes, places, overrides."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol, cast

import ray
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from rec.artifacts import read_bytes
from rec.config import Config, ConfigError, settings
from rec.data.budget import limit_memory
from rec.local_ray import init_local_ray

if TYPE_CHECKING:  # a job that trains nothing starts without torch
    from rec.train.recipe import Recipe

_TERMINATED = 128 + signal.SIGTERM
_stopped = threading.Event()  # by SIGTERM
# what the operating system, or an error of this package, says in the text of an error of a task
_TOLD = re.compile(r"^(?:\w*Error: (?=\[Errno \d+\])|rec\.[\w.]+Error: )(.*)$", re.MULTILINE)


class Main(Protocol):
    """A job's main: the command line, None for the process's own, to the exit status."""

    def __call__(self, argv: list[str] | None = None, /) -> int: ...


def load_recipe(place: str, overrides: Sequence[str] = ()) -> Recipe[Any]:
    """The recipe that the function at `module:function` returns, with typed overrides.

    Raises:
        ConfigError: there is no such function, it returns no recipe, or an override is wrong.
    """
    module_name, separator, function_name = place.partition(":")
    if not separator:
        raise ConfigError(f"recipe {place!r}: expected MODULE:FUNCTION")
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"recipe {place!r}: {error}") from error
    try:
        signature(function).bind()
    except (TypeError, ValueError) as error:  # not callable, or not without arguments
        raise ConfigError(
            f"recipe {place!r}: {error}; expected a function of no arguments"
        ) from error
    recipe = function()
    if not isinstance(recipe, Config):
        raise ConfigError(f"recipe {place!r}: returned {type(recipe).__name__}, not a recipe")
    return cast("Recipe[Any]", recipe.override(overrides))


def tell_errors(name: str, *expected: type[Exception]) -> Callable[[Main], Main]:
    """For the main of job `name`: errors that users cause and that the machine has (no space, no
    rights, no such folder) are told in a line on stderr, status 1; Ctrl-C ends with status 130."""

    def decorate(main: Main) -> Main:
        @wraps(main)
        def told(argv: list[str] | None = None) -> int:
            try:
                return main(argv)
            except (*expected, OSError) as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                print(f"{name}: {cause}", file=sys.stderr)
                return 1
            except RayError as error:
                found = _TOLD.findall(str(error))  # Ray keeps of a task's error its text alone
                if not found:
                    raise
                print(f"{name}: {found[-1]}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"{name}: interrupted; run the same command again", file=sys.stderr)
                return 130
            except SystemExit:
                if _stopped.is_set():  # Ray makes a status of its own of it, where it waited
                    raise SystemExit(_TERMINATED) from None
                raise

        return told

    return decorate


@contextmanager
def alone_in(out: str) -> Iterator[None]:
    """Hold the folder `out` against other jobs of this machine (of all that mount it, where the
    file system locks for all) until the block ends, however the process ends. S3 has no locks.

    Raises:
        ConfigError: another job writes there.
    """
    if "://" in out:
        yield
        return
    made = not os.path.isdir(out)
    try:
        os.makedirs(out, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{out}: a file; give --out a folder") from None
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{out}: another job writes there; wait until it has ended, or give another --out"
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        if made:  # of a job that was refused nothing is left
            with suppress(OSError):  # not empty
                os.rmdir(out)
        os.close(folder)


def _end(*_: object) -> None:
    _stopped.set()
    print("stopped by SIGTERM; run the same command again", file=sys.stderr)
    raise SystemExit(_TERMINATED)


def start_ray(options: argparse.Namespace | None = None, *, tables_only: bool = False) -> None:
    """Use the Ray that is running (RAY_ADDRESS, a submitted job's), else one of this process.

    Before anything that handles SIGTERM: ray.init installs a handler of its own.

    Args:
        options: a job's command line, parsed by a `parser` of here; every node must then reach
            its places. A cluster that scales is known by its nodes: one whose head takes tasks
            passes for a single machine until its first worker is there.
        tables_only: tasks do nothing but make tables of tables; a Ray of this process starts, works
            and ends sooner then.

    Raises:
        ConfigError: a place is a path of this machine, and work runs on others.
        ConnectionError: Ray does not start, or is not where RAY_ADDRESS says.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        try:
            if address == "local":
                init_local_ray(tables_only=tables_only)
            else:
                ray.init(address=address, include_dashboard=False)
        except Exception as error:  # Ray has no class of its own for what goes wrong here
            raise ConnectionError(
                f"Ray at {address!r} did not answer: {error}; is the cluster up, or this machine "
                "overloaded?"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end)  # Ray's own dumps its stack and aborts
    if options is None:
        return
    limit_memory(getattr(options, "task_memory", None))
    for path in options.places:
        if "://" not in path and not _below(path, options.shared_mount):
            _refuse_where_others_work(path)


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(os.path.commonpath([path, folder]) == folder for folder in folders)


def _refuse_where_others_work(path: str) -> None:
    own = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    others = len(nodes) - (own in nodes)
    if not others and nodes[own]["Resources"].get("CPU"):
        return
    where = f"{others} of {len(nodes)} nodes are others" if others else "this node takes no tasks"
    raise ConfigError(
        f"{path}: a path of this machine, which tasks on other nodes of the Ray cluster do not "
        f"see ({where}); give an s3:// URI, or --shared-mount DIR where all nodes mount one "
        "folder at DIR"
    )


@contextmanager
def phase_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar a phase, called with its name, and its finished and all tasks."""
    bars: dict[str, tqdm] = {}

    def update(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            bars[phase] = tqdm(total=total, desc=phase, unit="task")
        bars[phase].update(done - bars[phase].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()


def place(text: str) -> str:
    """A folder or URI as given, local ones made absolute: workers run in folders of their own.

    >>> place("s3://b/runs"), place("file:///data/../runs")
    ('s3://b/runs', '/runs')
    """
    if not text:
        raise argparse.ArgumentTypeError("empty; '.' is the folder you are in")
    text = text.removeprefix("file://")  # a path of this machine however it is spelled
    return text if "://" in text else os.path.abspath(text)


def add_task_memory(to: argparse.ArgumentParser) -> None:
    """Add --task-memory, which `start_ray` sees to."""
    to.add_argument(
        "--task-memory",
        type=_gigabytes,
        metavar="GB",
        help="memory that every task of data is planned with, instead of what its stage declares: "
        "less where a node is small, more where it ran out of memory",
    )


def _gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected gigabytes, as 0.5 or 4")
    return number


def moment(text: str) -> datetime:
    """A time or a day; without a zone where none is told."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a time, as 2026-01-08 or 2026-01-08T12:00+01:00"
        ) from None


def count(text: str) -> int:
    """A whole number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 on")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Notes in the options' `places` what was given for arguments of type `place`."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  (overloads)
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        options, rest = super().parse_known_args(args, namespace)
        given = [getattr(options, one.dest) for one in self._actions if one.type is place]
        lists = [[one] if isinstance(one, str) else one or [] for one in given]
        options.places = [path for paths in lists for path in paths]
        return options, rest


class _Assignments(argparse.Action):
    """Adds PATH=VALUE as they are, and the lines of @FILE but for empty ones and comments (#)."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        found = list(getattr(namespace, self.dest))
        for value in values or []:
            if not value.startswith("@"):
                found.append(value)
                continue
            try:
                text = read_bytes(place(value[1:])).decode()
            except (OSError, UnicodeDecodeError) as error:
                parser.error(f"{option_string} {value}: {error}")
            lines = (line.strip() for line in text.splitlines())
            found += [line for line in lines if line and not line.startswith("#")]
        setattr(namespace, self.dest, found)


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m module`, explained by the module's docstring."""
    flags = _Parser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument(
        "--shared-mount",
        action="extend",
        nargs="+",
        type=os.path.abspath,
        default=[],
        metavar="DIR",
        help="folders that all nodes of the Ray cluster mount at this path; other local places "
        "are refused where there are several nodes",
    )
    return flags


def peek(argv: Sequence[str] | None, flag: str) -> str | None:
    """What the command line gives for `flag`, before it is parsed: --help lists the settings of
    just that source or recipe."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(flag, dest="value", nargs="?")
    return first.parse_known_args(argv)[0].value


def recipe_settings(place: str | None) -> Config | None:
    """The recipe of the command line, None where there is none (or none such: load_recipe says)."""
    try:
        return None if place is None else cast(Config, load_recipe(place))
    except ConfigError:
        return None


def add_overrides(
    to: argparse.ArgumentParser, config: Config | None, without: str = "no settings"
) -> None:
    """Add `--set PATH=VALUE` and list what can be set, with types and the values of `config`.

    Args:
        without: what to say where there is no config.
    """
    to.add_argument(
        "--set",
        action=_Assignments,
        nargs="+",
        default=[],
        metavar="PATH=VALUE",
        help="typed overrides of the settings below, the last of a path counts; @FILE, local or "
        "s3://, holds one a line; may be repeated",
    )
    lines = [without] if config is None else settings(config)
    to.epilog = "\n".join(["settings and their defaults:", *(f"  {line}" for line in lines)])
