"""Shared by the fuzz tests: what is put in the place of what is right, and how an answer is judged."""

import copy
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from racnn.errors import UserError

SECONDS = 20  # for one of them; on a busy machine the slowest takes a twentieth
MEMORY = 700 * 2**20  # bytes that all of them together may need beside what is there
CLEAR_PEAK = Path("/proc/self/clear_refs")

NUMBERS = [0, -1, 1, 2, 7, 10**9, -(10**9), 10**15, 2**63, -(2**70), 10**100, 0.0, -0.5, 1e-320, 1e308]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
WORDS = ["", "x", "null", "nan", "1e999", "1-999999999999", "9" * 5000, "é\ud800", "a\0b", "timm/x", "../.."]
NESTED = [[], {}, [[]], [{}], {"x": {"y": [None]}}, [1, "x", None], {1: 2}, {None: None}, [[0.9, 0.1]] * 3]


@contextmanager
def soon(told):
    """Fail where something hangs."""

    def stop(*_):
        raise AssertionError(f"hangs: {told}")

    before = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # of the test's own limit
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


@contextmanager
def little_memory():
    """Fail where the peak of this process's memory rises by much; what tests before needed does not count."""
    if not CLEAR_PEAK.exists():  # not Linux
        yield
        return
    CLEAR_PEAK.write_text("5")
    before = peak_memory()
    yield
    assert peak_memory() - before < MEMORY


def peak_memory():
    """Return the most memory that this process has held since the peak was cleared, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def is_refused(action, told):
    """Return whether an action ends with a user's mistake; it may also work, but do nothing else."""
    with soon(told):
        try:
            action()
        except UserError as mistake:
            return len(str(mistake)) < 20_000 or pytest.fail(f"a long message: {told}")
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nof {told}") from error
    return False


def containers(node):
    """Yield every dictionary and list of a nested value that has something in it."""
    if isinstance(node, dict | list) and node:
        yield node
        for item in node.values() if isinstance(node, dict) else node:
            yield from containers(item)


def mutate(root, rng, junk):
    """Change one place of a nested value and return what was done."""
    node = rng.choice(list(containers(root)))
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    kind = rng.choice(["replace", "replace", "replace", "delete", "rename", "repeat", "wrap", "swap"])
    if kind == "delete":
        del node[key]
    elif kind == "rename" and isinstance(node, dict) and isinstance(key, str):
        node[rng.choice([key[1:], key + "s", key.upper(), key.replace("_", "-"), ""])] = node.pop(key)
    elif kind == "repeat" and isinstance(node, list):
        node += [copy.deepcopy(node[key])] * rng.choice([1, 2, 30])
    elif kind == "wrap":
        node[key] = rng.choice([[node[key]], {"kind": node[key]}, {str(key): node[key]}])
    elif kind == "swap":
        other = rng.choice(list(containers(root)))
        node[key] = copy.deepcopy(rng.choice(list(other.values() if isinstance(other, dict) else other)))
    else:
        kind, node[key] = "replace", copy.deepcopy(rng.choice(junk))
    return f"{kind} {key}"
