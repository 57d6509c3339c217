"""Train all settings given on stdin with two gloo workers; print rank 0's epochs. Used by several tests.

    python tests/two_workers.py FOLDER [export]

With `export` the workers then measure and export the first trial, into FOLDER/model and FOLDER/record.
"""

import ast
import json
import multiprocessing
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "src")]

import torch.distributed

from finetune import model_folder
from finetune.disk.atomic import settle
from finetune.messages import Epoch, Keep, Message
from finetune.settings import TrialSettings
from finetune.training import loop
from finetune.training.workers import World


def work(rank: int, trials: list[TrialSettings], folder: Path, file: str, exports: bool) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    told = []
    for number, settings in enumerate(trials):
        messages: list[Message] = []
        paths = {"best": folder / f"best{number}", "last": folder / f"last{number}"}
        keep = Keep(metric="val/accuracy", **paths)
        loop.train(settings, keep=keep, report=messages.append, world=World(rank, 2))
        told.append([dict(m.metrics) for m in messages if isinstance(m, Epoch)])
    if exports:
        settle(folder / "best0")  # rank 0 writes it in a thread
        torch.distributed.barrier()
        to, answers = folder / "model", folder / "record"
        model_folder.write(folder / "best0", to, {}, world=World(rank, 2), answers=answers)
        torch.distributed.barrier()
    if rank == 0:
        (folder / "epochs.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    given = [TrialSettings.from_dict(values) for values in ast.literal_eval(sys.stdin.read())]
    context = multiprocessing.get_context("fork")  # torch is imported once
    workers = [
        context.Process(target=work, args=(r, given, target, f"{target}/rendezvous", "export" in sys.argv))
        for r in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print((target / "epochs.json").read_text())
    sys.exit(max(worker.exitcode or 0 for worker in workers))
