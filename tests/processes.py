"""A script run by two processes of a Trainer at once, and what they wrote."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import lightning_invariance

_MINUTES = 3


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Launch:
    """Two processes that ran to their end, or were stopped, what they wrote and the codes that they ended with."""

    def __init__(self, script: str, folder: Path) -> None:
        package, tests = Path(lightning_invariance.__file__).parents[1], Path(__file__).parent
        paths = [str(package), str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
        shared = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "NODE_RANK": "0",
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
        }
        self.folder = folder
        outputs = [folder / f"output-{rank}.txt" for rank in range(2)]
        processes = []
        for rank, output in enumerate(outputs):
            with output.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, script, str(folder)],
                        env={**shared, "LOCAL_RANK": str(rank)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        self.ended = True
        try:
            for process in processes:
                process.wait(timeout=60 * _MINUTES)
        except subprocess.TimeoutExpired:
            self.ended = False
        finally:
            for process in processes:
                process.kill()  # Lightning lets a process go on that is merely asked to end
                process.wait()
        self.codes = [process.returncode for process in processes]
        self.outputs = [output.read_text() for output in outputs]
        for rank, output in enumerate(self.outputs):
            print(f"--- process {rank} ---\n{output[-4000:]}")

    def results(self, name: str) -> list[dict[str, Any]]:
        """What each process wrote."""
        found = []
        for rank in range(2):
            file = self.folder / f"{name}-{rank}.pt"
            assert file.exists(), f"process {rank} did not get through {name!r}"
            found.append(torch.load(file, weights_only=True))
        return found
