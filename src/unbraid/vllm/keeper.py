"""A small process between unbraid and one vLLM server: whatever happens to unbraid, nothing of the server stays behind.

    python keeper.py PARENT GRACE COMMAND...

It runs the command in a session of its own, prints its process id, and ends with it. It ends the command, and every
process that came of it, when it gets SIGTERM or when its parent is gone, even by SIGKILL: SIGTERM first, SIGKILL after
GRACE seconds.

Choice: a process, and not PR_SET_PDEATHSIG on the server. That signal reaches vLLM's first process alone, whose engine
and workers then live on with all their memory (tried on 0.32); it also comes when the thread ends that started the
server, and it needs code between fork and exec, which may deadlock beside torch's threads.

Only the standard library: it is run by path, without site-packages.
"""

import os
import signal
import subprocess
import sys
import time

EVERY = 0.1
"""Seconds between two looks at the parent."""
PR_SET_CHILD_SUBREAPER = 36


def keep(parent: int, grace: float, command: list[str]) -> int:
    """Run the command until it ends, SIGTERM comes, or process `parent` is gone; its status, as a shell has it."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    _adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True)
    try:
        sys.stdout.write(f"{child.pid}\n")
        sys.stdout.flush()
        while child.poll() is None and not asked and os.getppid() == parent:
            time.sleep(EVERY)
    except BrokenPipeError:
        pass  # the parent went before it could read
    finally:
        _end(child, grace)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _end(child: "subprocess.Popen[bytes]", grace: float) -> None:
    """End what is left of the child's session. Its resource tracker frees shared memory when the others are gone."""
    until = time.monotonic() + grace
    _signal(child.pid, signal.SIGTERM)
    while _left(child) and time.monotonic() < until:
        time.sleep(EVERY / 2)
    _signal(child.pid, signal.SIGKILL)


def _left(child: "subprocess.Popen[bytes]") -> bool:
    """Whether any process of the child's group is left. Reaps orphans, which would count as left otherwise."""
    if child.poll() is None:
        return True
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return _signal(child.pid, 0)


def _signal(group: int, number: int) -> bool:
    """Signal a group; whether it exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # what macOS says of a group of zombies
        return False
    return True


def _adopt_orphans() -> None:
    """Make orphans of the server children of this process: in a container there may be nobody else to reap them."""
    if sys.platform != "linux":
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # they are killed all the same


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
