"""What a reward worker process runs: math-verify, a regular expression, or a reward file of the user.

The pool starts this file by its path, so that a worker imports neither this package nor torch: it starts in a fraction
of a second and its memory limit means what it says. Messages are lines of JSON: nothing that a worker sends is
unpickled.

    python -P worker.py SOCKET

Parent to worker: the settings once (they may hold what must not stand in a process list), then [number, task] one at a
time. Worker to parent: {"ready": interface} once, then {"value": ...} or {"error": "..."} a task, with its "number".
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

Handler = Callable[[Any], Any]
KILL_GRACE_S = 2.0
NEW_PROCESS_NUMBERS, NEW_USER = 0x20000000, 0x10000000  # CLONE_NEWPID, CLONE_NEWUSER


def load_verifier() -> tuple[Handler, str]:
    """Tasks: ["equal", prediction, truth] -> bool, in LaTeX; ["match", pattern, text] -> bool, a full match."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def equal(prediction: str, truth: str) -> bool:
        # The library's own time limits are off: they need signals and are slower than the pool's.
        left, right = (parse(rf"\boxed{{{latex}}}", parsing_timeout=None) for latex in (truth, prediction))
        # Both ways: the library takes an interval for an inequality, but not an inequality for an interval.
        return bool(verify(left, right, timeout_seconds=None) or verify(right, left, timeout_seconds=None))

    def match(pattern: str, text: str) -> bool:
        return re.fullmatch(pattern, text, re.DOTALL) is not None

    operations = {"equal": equal, "match": match}
    equal("2\\sqrt{3}", "\\sqrt{12}")  # the first call builds the parser's tables
    return lambda task: operations[task[0]](*task[1:]), "verifier"


def load_reward_file(path: str, function_name: str, kwargs: dict[str, Any], kind: str) -> tuple[Handler, str]:
    """Tasks: a list of items (dictionaries) -> what the function returned for each, as plain numbers or errors."""
    spec = importlib.util.spec_from_file_location("diva_custom_reward", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise AttributeError(f"it has no function {function_name}; it has {', '.join(names) or 'none'}")
    if not callable(function):
        raise TypeError(f"{function_name} is no function")
    if kind == "auto":
        kind = interface_of(function, getattr(module, "REWARD_TYPE", None))

    def handle(items: list[dict[str, Any]]) -> Any:
        return call_reward(function, kind, items, kwargs)

    return handle, kind


def interface_of(function: Callable[..., Any], declared: str | None) -> str:
    """`batch`, `sequential` or `completions`, from the file's REWARD_TYPE, else from the function's parameters."""
    if declared in ("batch", "sequential"):
        return declared
    parameters = inspect.signature(function).parameters
    if "completions" in parameters:
        return "completions"
    first = next(iter(parameters.values()), None)
    if first is None:
        return "batch"
    written = str(first.annotation).lower()
    is_one_item = first.name == "reward_input" or written.startswith(("dict", "typing.dict", "rewardinput"))
    return "sequential" if is_one_item else "batch"


def call_reward(function: Callable[..., Any], kind: str, items: list[dict[str, Any]], kwargs: dict[str, Any]) -> Any:
    """Call the user's function on a list of items; raises what it raises, and ValueError for a wrong count."""
    if kind == "sequential":
        returned = [function(item, **kwargs) for item in items]
    elif kind == "completions":
        shared = set.intersection(*(set(item) for item in items)) - {"response", "question"}
        columns = {name: [item[name] for item in items] for name in sorted(shared)}
        turns = [[{"role": "assistant", "content": item["response"]}] for item in items]
        prompts = [[{"role": "user", "content": item["question"]}] for item in items]
        columns["solution"] = [item.get("solution", item["ground_truth"]) for item in items]
        returned = function(prompts=prompts, completions=turns, **(columns | kwargs))
    else:
        returned = function(items, **kwargs)
    if not isinstance(returned, list | tuple):
        raise TypeError(f"it returned {type(returned).__name__}, not a list with one result an item")
    if len(returned) != len(items):
        raise ValueError(f"it returned {len(returned)} results for {len(items)} items")
    return [plain_numbers(result) for result in returned]


def plain_numbers(result: Any) -> dict[str, float] | str:
    """{"overall": ..., ...} as floats, or the sentence that says what is wrong with a result."""
    if not isinstance(result, dict):
        result = {"overall": result}
    if "overall" not in result:
        return f"the result has no key overall; it has {', '.join(map(str, result)) or 'none'}"[:300]
    numbers = {}
    for key, value in result.items():
        if isinstance(value, str | bytes) or value is None:
            return f"{key} is {value!r:.60}, not a number"
        try:
            numbers[str(key)] = float(value)
        except (TypeError, ValueError, OverflowError):
            return f"{key} is {value!r:.60}, not a number"
        if numbers[str(key)] != numbers[str(key)] or abs(numbers[str(key)]) == float("inf"):
            return f"{key} is {value!r:.60}"
    return numbers


def last_line_in(path: str, error: BaseException) -> str:
    """The kind and words of an error, and the line of the user's file where it arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {str(error)[:300]}{place}"


def leave_the_others_alone() -> bool:
    """Goes on in a space of process numbers of its own: no other process can be seen or signalled from there, and when
    the worker ends, the kernel ends all that it has started, whatever session that fled to.

    Returns whether the system allows it. Three processes remain: this one, which waits and ends as the worker ends;
    the first of the new space, which does the same; and the worker, in which alone the call returns.
    """
    user, group = os.getuid(), os.getgid()
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(NEW_PROCESS_NUMBERS) != 0:
        if unshare(NEW_PROCESS_NUMBERS | NEW_USER) != 0:
            return False
        with suppress(OSError):  # then files belong to nobody inside, and can be read all the same
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    reader, writer = os.pipe()
    first = os.fork()
    if first:
        close_all_but(reader)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
        os.waitpid(first, 0)
        end_like(int.from_bytes(os.read(reader, 4) or bytes([0, 0, 0, signal.SIGKILL])))
    os.close(reader)
    worker = os.fork()
    if worker:
        close_all_but(writer)
        os.write(writer, wait_for(worker).to_bytes(4))
        os._exit(0)
    os.close(writer)
    return True


def close_all_but(kept: int) -> None:
    """The socket must be the worker's alone: its end is how the pool learns of a death."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def wait_for(worker: int) -> int:
    """The wait status of `worker`; others that end meanwhile, orphans of what it started, are buried."""
    while True:
        ended, status = os.wait()
        if ended == worker:
            return status


def end_like(status: int) -> None:
    """Ends this process as the one with this wait status has ended."""
    if os.WIFSIGNALED(status):
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def serve(reader: BinaryIO, connection: socket.socket, handler: Handler, time_limit_s: float, path: str) -> None:
    """Answer tasks until the parent closes the connection.

    The alarm is the kernel's: it ends a worker whose parent has died and which is stuck in C code. The pool's own limit
    is shorter.
    """
    while line := reader.readline():
        signal.setitimer(signal.ITIMER_REAL, time_limit_s + KILL_GRACE_S)
        number, task = json.loads(line)
        try:
            reply = {"value": handler(task)}
        except BaseException as error:  # SystemExit too: a worker answers for whatever it runs
            reply = {"error": last_line_in(path, error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(connection, {**reply, "number": number})


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    reader = connection.makefile("rb")
    settings = json.loads(reader.readline())
    sys.path[:] = settings["sys_path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings["memory_limit_mb"]:
        limit = int(settings["memory_limit_mb"]) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    kind, *arguments = settings["load"]
    path = arguments[0] if arguments else ""
    is_apart = kind == "file" and leave_the_others_alone()
    try:
        handler, interface = load_reward_file(*arguments) if kind == "file" else load_verifier()
    except BaseException as error:
        send(connection, {"error": last_line_in(path, error)})
        return
    send(connection, {"ready": interface, "is_apart": is_apart})
    serve(reader, connection, handler, settings["time_limit_s"], path)


if __name__ == "__main__":
    with suppress(ConnectionResetError, BrokenPipeError):  # the trainer was killed: nobody waits for an answer
        main()
