"""How long a network takes: medians with their spread, and ratios measured in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.core import InputError, Inputs
from prunus.core.backends import backends, form_for
from prunus.core.callbacks import EXAMPLE, forward
from prunus.core.checks import Kind, a_mapping, check_arguments
from prunus.core.inference import copied
from prunus.core.running import with_batch
from prunus.core.words import a_network

WARM_UP = 3  # untimed runs of everything before the clock starts
LEAST = 5  # timed runs of everything, however slow
TURN = 0.03  # seconds that one callable runs before the next one has its turn
BAR = 2.0  # seconds above which a progress bar is shown


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one forward over the whole batch: the median, its 10th and 90th percentile.

    Attributes:
        median_ms, p10, p90: in milliseconds.
        runs: how many forwards were timed.
    """

    median_ms: float
    p10: float
    p90: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """From single timings in seconds.

        >>> Latency.of([0.001, 0.002, 0.009])
        Latency(median_ms=2.0, p10=1.2, p90=7.6, runs=3)
        """
        ms = torch.tensor(seconds, dtype=torch.float64) * 1e3
        low, mid, high = (round(float(ms.quantile(q)), 6) for q in (0.1, 0.5, 0.9))
        return cls(mid, low, high, len(seconds))


def key(backend: str, batch: int, threads: int) -> str:
    """The name that a measurement of a `backend` with `batch` samples and `threads` has in ``result.json``.

    >>> key("onnxruntime", 64, 1)
    'onnxruntime,b64,t1'
    """
    check_arguments(locals())
    return f"{backend},b{batch},t{threads}"


def latency(
    model: nn.Module | str | Path,
    example_inputs: Any,
    *,
    backend: str = "torch",
    batch: int = 1,
    threads: int = 1,
    seconds: float = 1.0,
) -> Latency:
    """Time one network in one backend; `compare_latency` and `race` give the fairer ratio of several.

    What is timed is the network as it is run (`inference_form`): filters in a basis are put together once, say, and not
    in every forward.

    Args:
        model: a module, or for file based backends the path of an exported network.
        example_inputs: what forward takes; repeated or cut to `batch` samples.
        backend: a name of the backend registry (``"torch"``, ``"onnxruntime"``).
        batch, threads: samples per forward, threads to use; torch's own thread count is put back afterwards.
        seconds: how long to measure, after the warm-up.

    Raises: `UnknownNameError` for an unknown backend, `InputError` for a batch, threads or seconds that make no sense.

    >>> latency(nn.Linear(4, 4), torch.zeros(1, 4), seconds=0.01).runs >= 5
    True
    """
    check_arguments(locals(), model=a_network)
    return race({"": model}, example_inputs, backend=backend, batch=batch, threads=threads, seconds=seconds)[""]


def race(
    models: Mapping[str, nn.Module | str | Path],
    example_inputs: Any,
    *,
    backend: str = "torch",
    batch: int = 1,
    threads: int = 1,
    seconds: float = 1.0,
) -> dict[str, Latency]:
    """Time several networks against each other in one backend, taking turns in one process; `seconds` for each.

    Each is timed as it is run (`inference_form`).

    Args:
        models: by name, what `latency` takes; example_inputs, backend, batch, threads: as there, the same for all.

    Raises: what `latency` does, `InputError` for a batch, threads or seconds that make no sense.
    """
    check_arguments(locals(), models=a_mapping)
    entry = backends[backend]
    for name, value in (("batch", batch), ("threads", threads), ("seconds", seconds)):
        if not value > 0:
            raise InputError(f"latency: {name}={value} must be positive.")
    inputs = with_batch(Inputs.of(example_inputs), batch)
    with torch_threads(threads):
        ready = {n: form_for(backend, m, inputs).model if isinstance(m, nn.Module) else m for n, m in models.items()}
        calls = {name: entry.call(model, inputs, threads) for name, model in ready.items()}
    title = f"timing in {backend}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
    return compare_latency(calls, threads=threads, seconds=seconds, title=title)


def compare_latency(
    calls: Mapping[str, Callable[[], Any]], *, threads: int = 1, seconds: float = 1.0, title: str = "timing"
) -> dict[str, Latency]:
    """Time functions of no arguments in turns, so that whatever else the machine does falls on all of them alike.

    Each turn lasts about 30 ms and starts with one untimed run, which brings the function's data back into the caches;
    the order is rotated from turn to turn.  `seconds` is spent on every function.

    Args: calls: the functions by name; threads: of torch, meanwhile; title: of the bar that shows how far it is.

    >>> sorted(compare_latency({"a": lambda: None, "b": lambda: None}, seconds=0.01))
    ['a', 'b']
    """
    check_arguments(locals(), calls=Kind("a dictionary of functions", lambda v: all(map(callable, v.values()))))
    names = list(calls)
    timings: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    with torch_threads(threads), progress(title, seconds * len(names)) as advance:
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        turn = 0
        while any(spent[n] < seconds or len(timings[n]) < LEAST for n in names):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                took = _one_turn(calls[name], timings[name])
                spent[name] += took
                advance(took)
            turn += 1
    return {name: Latency.of(times) for name, times in timings.items()}


def _one_turn(call: Callable[[], Any], timings: list[float]) -> float:
    """One untimed run, then timed ones for about `TURN` seconds; returns the seconds spent in timed runs."""
    clock = time.perf_counter
    call()
    spent = 0.0
    while spent < TURN:
        start = clock()
        call()
        timings.append(clock() - start)
        spent += timings[-1]
    return spent


_MEASURING = threading.RLock()  # two measurements at once would tell nothing


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run torch with this many intra-operator threads, then with as many as before; one measurement at a time."""
    with _MEASURING:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def progress(title: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """A progress bar over `seconds` when that is longer than two; yields the function that moves it on."""
    if seconds <= BAR:
        yield lambda took: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=seconds)
        yield lambda took: bar.advance(task, took)


@backends.register("torch")
def torch_backend(model: nn.Module | str | Path, inputs: Inputs, threads: int) -> Callable[[], Any]:
    """PyTorch eager, in evaluation mode and without gradients, on the device of the model's weights.

    A copy of the network is timed.  Inputs take its memory format, so that a channels_last network is not slowed by a
    conversion.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the torch backend times a module; given {model!r}. Load the network first: prunus.load.")
    twin = copied(model).eval()
    weights = list(twin.parameters())
    device = weights[0].device if weights else torch.device("cpu")
    inputs = inputs.map(lambda t: t.to(device))
    if any(w.dim() == 4 and not w.is_contiguous() for w in weights):
        inputs = inputs.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)

    with torch.inference_mode():
        forward(twin, inputs, "example_inputs", EXAMPLE)

    def call() -> Any:
        with torch.inference_mode():
            out = inputs(twin)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return out

    return call
