"""`Producer`: for a readout program that exists already and wants to hand its data to a run.

::

    with phloem.Producer("mydaq", phloem.Equipment("Scope", buffer="SYSTEM")) as p:
        for samples in my_readout():
            p.produce({"ADC0": samples})          # instead of print(samples)

A thread of its own answers run control, so that the program keeps its own loop.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import ArrayLike

from phloem.app.experiment import load
from phloem.app.places import find_running, runtime_dir
from phloem.dataflow.component import Place
from phloem.dataflow.frontend import BatchDraft, EventDraft, Frontend
from phloem.dataflow.readout import Readout
from phloem.model.errors import PhloemError, TransitionError, UnreachableError
from phloem.model.event import Equipment
from phloem.protocol.control import TransitionRequest
from phloem.protocol.state import State

__all__ = ["Producer"]

WAIT_S = 0.1


class _Unpolled(Frontend):
    """A frontend that reads nothing by itself."""

    def poll(self) -> bool:
        self.wait(WAIT_S)
        return False


class _ProducerReadout(Readout):
    """Transitions and sends come from two threads: one at a time. ``changed`` is told of each new state."""

    def __init__(self, *args: Any, changed: threading.Condition, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._changed = changed

    def _transition(self, request: TransitionRequest) -> None:
        with self._changed:
            super()._transition(request)
            self._changed.notify_all()


class Producer:
    """A frontend without a loop: `produce` sends one event, `produce_batch` many of equal shape.

    ``name``: client name. ``equipment``: what it sends as. ``experiment``: path of the experiment file, or ``core``:
    run control's address; without both the one experiment that runs on this host. Errors: `UnreachableError` if no
    run control answers, `SettingsError` if it refuses (the name is taken, say).
    """

    def __init__(
        self, name: str, equipment: Equipment, *, experiment: str = "", core: str = "", index: int | None = None
    ) -> None:
        if experiment:
            described = load(experiment)
            directory = runtime_dir(described.experiment.name, described.data_dir)
            address = core or find_running(directory).address
        else:
            running = find_running()
            directory, address = runtime_dir(running.experiment, Path(running.data_dir)), core or running.address
        unpolled = type("Unpolled", (_Unpolled,), {"name": name, "equipment": (equipment,)})
        self._changed = threading.Condition()
        self._readout = _ProducerReadout(
            unpolled, Place(address, directory), index=index, file=sys.argv[0], changed=self._changed
        )
        self._failed: PhloemError | None = None
        self._closing = False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"producer-{name}", daemon=True)
        self._thread.start()
        self._started.wait()
        self._check()

    def produce(self, banks: Mapping[str, ArrayLike], *, serial_number: int | None = None, wait: bool = True) -> None:
        """Send one event: bank name (4 ASCII characters) to array. When this returns, it is sent.

        Blocks until a run is prepared that has not all its events (Event limit), and while the buffer is full. With
        ``wait=False`` a `TransitionError` says that there is no such run.
        """
        draft = EventDraft("")
        draft.serial_number = serial_number
        for name, values in banks.items():
            draft.bank(name, values)
        self._send(draft, wait)

    def produce_batch(self, banks: Mapping[str, ArrayLike], *, wait: bool = True) -> None:
        """Send many events: each array is (events, ...)."""
        draft = BatchDraft("")
        for name, values in banks.items():
            draft.bank(name, values)
        self._send(draft, wait)

    @property
    def running(self) -> bool:
        """Whether a run takes data now."""
        return self._readout.state == State.RUN

    @property
    def run_number(self) -> int | None:
        """The run that is prepared or going on."""
        run = self._readout.run_info
        return run.number if run else None

    def close(self) -> None:
        """Send what is in hand and leave."""
        self._closing = True
        self._readout.bell.ring()
        self._thread.join(timeout=10)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, draft: EventDraft | BatchDraft, wait: bool) -> None:
        with self._changed:
            while self._readout.state == State.STOP or (wait and self._readout.full(draft)):
                self._check()
                if not wait:
                    raise TransitionError(f"{self._readout.name} cannot send: no run is prepared")
                self._changed.wait(WAIT_S)
            self._check()
            self._readout.send(draft)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closing or not self._thread.is_alive():
            raise UnreachableError(f"producer {self._readout.name} is closed")

    def _serve(self) -> None:
        try:
            self._readout.attach()
            self._started.set()
            while not self._closing and not self._readout.ending:
                self._readout.step()
        except PhloemError as error:
            self._failed = error
        finally:
            self._started.set()
            self._readout.detach()
