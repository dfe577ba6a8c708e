"""Start Python processes that have already imported torch: a real process each, in milliseconds instead of seconds.

`import torch` and torchvision cost several seconds of CPU, and hundreds of tests start a process. So one server imports
what the project's commands need and does nothing else. For each request it forks a child, which runs a command line as
`python` would: its own process id, working directory, environment, signals and exit code.

Tests start `$PYTHON_EXEC -m detection.training ...` in place of `python` (see tests/conftest.py): a small process that
forwards signals to the child, ends as the child does, and takes the child with it when it is killed. torchrun starts
its ranks with $PYTHON_EXEC, too, and a grid its runs with `--launcher $PYTHON_EXEC`.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORWARDED = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
PRELOADED = (
    "torch", "torch.distributed.run", "torchvision", "numpy", "PIL.Image", "pydantic", "yaml", "tqdm", "hotcoco",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.flop_counter", "torch.optim.swa_utils",
    "detection.record", "detection.detector", "classification.record", "classification.classifier",
    "diffusion.record", "runs", "ablation.report", "ablation.cells",
)  # fmt: skip


# ---- the server --------------------------------------------------------------------------------------------------


def serve(path: str) -> None:
    """Fork a child for each connection until the process that runs the tests ends."""
    import gc
    import importlib

    owner = Path("/proc") / os.environ["FORKSERVER_OWNER"]
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or the first collection of every child would copy all of this
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # from here on it answers
    children: dict[int, socket.socket] = {}
    while owner.exists():
        ready, _, _ = select.select([listener, *children.values()], [], [], 0.01)
        for pid, connection in children.items():
            if connection in ready:  # nobody waits for the child any more, or a signal for it
                number = connection.recv(1)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number[0] if number else signal.SIGKILL)
        if listener in ready:
            connection, _ = listener.accept()
            pid = start_child(connection, [listener, *children.values()])
            connection.sendall(f"{pid}\n".encode())
            children[pid] = connection
        reap(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def reap(children: dict[int, socket.socket]) -> None:
    """Send the exit codes of the children that have ended to whoever waits for them."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            if connection := children.pop(pid, None):
                with contextlib.suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()


def start_child(connection: socket.socket, inherited: list[socket.socket]) -> int:
    """Fork a child that runs what the connection asks for; return its process id."""
    size = int.from_bytes(connection.recv(4), "big")
    data, streams, _, _ = socket.recv_fds(connection, size, 3)
    while len(data) < size:
        data += connection.recv(size - len(data))
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        return pid
    code = 1
    try:
        for each in (connection, *inherited):
            each.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        code = run_child(**json.loads(data))
    finally:
        os._exit(code)


def run_child(words: list[str], cwd: str, env: dict[str, str], ignored: list[int]) -> int:
    """Run a command line as a new Python process would; return its exit code."""
    import atexit
    import threading
    import traceback

    import torch

    for number in {signal.Signals[name] for name in FORWARDED}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if "RANK" in env:
        Path("/proc/self/comm").write_text(f"rank{env['RANK']}")  # for tests that look for the rank's process
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    sys.orig_argv = ["python", *words]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    code = 0
    try:
        run_words(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def run_words(words: list[str]) -> None:
    """Run `[-u] -m MODULE ...`, `-c CODE ...` or `SCRIPT ...`."""
    import runpy

    while words[0] == "-u":
        words = words[1:]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = os.getcwd()
        sys.modules.pop(words[1], None)  # preloaded by another module; runpy would warn
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


# ---- in place of Python ------------------------------------------------------------------------------------------


def main(words: list[str]) -> None:
    """Have the server run `python WORDS` on this process's streams, and end as it does."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_torchrun()
    with connect() as connection:
        numbers = [signal.Signals[name] for name in FORWARDED]
        ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
        for number in set(numbers) - set(ignored):
            signal.signal(number, lambda number, _: forward(number, connection))
        request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ), "ignored": ignored}
        data = json.dumps(request).encode()
        connection.sendall(len(data).to_bytes(4, "big"))
        sent = socket.send_fds(connection, [data], [0, 1, 2])
        connection.sendall(data[sent:])
        _, code = connection.makefile().read().split()
    if int(code) < 0:
        if -int(code) not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-int(code), signal.SIG_DFL)
        os.kill(os.getpid(), -int(code))
    sys.exit(int(code))


def forward(number: int, connection: socket.socket) -> None:
    """Have the server send a signal to the child."""
    with contextlib.suppress(OSError):  # it has just ended
        connection.send(bytes([number]))


def end_with_torchrun() -> None:
    """Get SIGTERM when torchrun dies, as the rank would if it were torchrun's child; see engine/distributed.py."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def connect() -> socket.socket:
    """Connect to the server, which the first client starts."""
    connection, path = socket.socket(socket.AF_UNIX), Path(os.environ["FORKSERVER"])
    with open(path.with_name("lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with open(path.with_name("server.log"), "w") as log:  # not the client's streams: they would never end
                server = subprocess.Popen(
                    [os.environ["FORKSERVER_PYTHON"], __file__, "serve", str(path)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            while not path.exists() and server.poll() is None:
                time.sleep(0.02)
        connection.connect(str(path))
    return connection


def write_executable(folder: Path) -> Path:
    """Write a script to start in place of Python, whose server lives as long as this process."""
    path = folder / "python"
    # Without site-packages the client starts in a fiftieth of a second.
    path.write_text(
        f'#!/bin/sh\nexport FORKSERVER="{folder / "socket"}" FORKSERVER_OWNER={os.getpid()} '
        f'FORKSERVER_PYTHON="{sys.executable}"\n'
        f'exec "{sys.executable}" -I -S "{Path(__file__).resolve()}" "$@"\n'
    )
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        main(sys.argv[1:])
