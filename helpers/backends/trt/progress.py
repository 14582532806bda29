# SPDX-License-Identifier: Apache-2.0
"""A builder's progress on stderr: one line, rewritten in place, when stderr is a terminal."""

from __future__ import annotations

import sys
import threading
from typing import Any


def monitor(trt: Any) -> Any:
    """Return a progress monitor for IBuilderConfig; it also lets Ctrl-C end a build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Shows the innermost phase and how far it is. TensorRT calls it from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._steps: dict[str, tuple[int, int]] = {}  # phase -> done, of
            self._cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = (0, num_steps)
            self._show()

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                _, total = self._steps.get(phase_name, (0, step + 1))
                self._steps[phase_name] = (step + 1, total)
            self._show()
            return not self._cancelled  # False asks TensorRT to stop

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)
                done = not self._steps
            if done:
                self._write("\r\033[K")

        def _show(self) -> None:
            with self._lock:
                if not self._steps:
                    return
                phase, (step, total) = list(self._steps.items())[-1]
            self._write(f"\r\033[K{phase}: {step} of {total}")

        def _write(self, text: str) -> None:
            try:
                if sys.stderr.isatty():
                    sys.stderr.write(text)
                    sys.stderr.flush()
            except KeyboardInterrupt:
                self._cancelled = True

    return Monitor()
