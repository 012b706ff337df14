"""Several processes on this machine, by torchrun's own launcher."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

import torch

from reidcore.errors import RunError


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run the command line with these arguments in several processes, as torchrun does; return its exit status.

    What goes wrong is said by the process in which it does. Raises RunError for a number below 1, and where a process
    ended without a word.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    if processes < 1:
        raise RunError(f"--processes: found {processes}; expected at least 1")
    # they would all take all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")  # to finish a step, and write a checkpoint
    logging.disable()  # what went wrong is said once, and not by the launcher's log
    options = ["--standalone", "--nproc-per-node", str(processes), "--module", "reidcore", *arguments]
    try:
        run(get_args_parser().parse_args(options))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise RunError(
                f"process {failure.local_rank} of the run was ended by {name}; go on with --resume"
            ) from None
        return failure.exitcode
    except SignalException as error:  # heard by all
        return 2 if error.sigval == signal.SIGINT else 128 + int(error.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return 0
