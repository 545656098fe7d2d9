"""Training that is stopped again and again, as by a machine that is wanted back."""

import os
import signal

import pytest
import torch

from racnn.engine import trainer

EVERY = 3  # steps between two stops


def stop_every(num, phases):
    """Patch training so that the process is told to stop after so many steps; note the phase."""
    plain = trainer.train_one_epoch
    left = [num]

    def counted(model, batches, phase, *rest):
        for step in plain(model, batches, phase, *rest):
            left[0] -= 1
            if left[0] == 0:
                phases.append(phase.kind)
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    return counted


def train_in_pieces(config, phases, *, told=True, every=EVERY):
    """Train to the end, stopped after every few steps where this process is the one that is told."""
    begun = False
    while True:
        with pytest.MonkeyPatch.context() as patch:
            if told:
                patch.setattr(trainer, "train_one_epoch", stop_every(every, phases))
            try:
                trainer.fit(config, device=torch.device("cpu"), resume=begun)
            except SystemExit as stopped:
                if stopped.code != 143:
                    raise
                begun = True
                continue
        return
