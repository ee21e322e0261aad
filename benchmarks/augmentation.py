"""What augmentation costs of a training step: CPU time of visits with and without, in turns within one run.

OMP_NUM_THREADS=1 python -m benchmarks.augmentation --runs 5
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.device.process import keep_freed
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.initialise import initialise
from fedgraft.common.protocol.routing import changed
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study, parse_study

IMAGES, SIZE, BATCH = 256, 64, 32


def study(channels: int) -> Study:
    """The slim net with one head."""
    local = {"kind": "gradient", "epochs": 1, "batch_size": BATCH, "augment": {}}
    return parse_study(
        {
            "name": "augmentation",
            "tasks": [{"name": "cls", "classes": ["a", "b"]}],
            "input": {"kind": "image", "size": SIZE, "channels": channels},
            "model": {"backbone": "slim_resnet", "weights": None},
            "plan": [{"name": "train", "local": local, "aggregate": {"kind": "mean"}}],
        },
        "augmentation",
    )


def cohort(channels: int) -> Cohort:
    """Noise, all of it for training."""
    draw, every, none = torch.Generator().manual_seed(0), torch.arange(IMAGES), torch.arange(0)
    inputs = torch.randint(-32768, 32768, (IMAGES, channels, SIZE, SIZE), generator=draw, dtype=torch.int16)
    splits = {"train": every, "val": none, "test": none}
    return Cohort("one", inputs, {"cls": every % 2}, tuple(map(str, range(IMAGES))), splits, (), {})


def main() -> None:
    """Grey, and three channels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    keep_freed()  # as every process that trains
    for channels in (1, 3):
        asked = study(channels)
        stage, local_model = asked.plan[0], LocalModel(asked, torch.device("cpu"))
        assert isinstance(stage.local, Gradient)
        local_model.load(initialise(asked).state())
        loader = Loader(cohort(channels), asked.input, local_model.device)
        keys = sorted(changed(stage, local_model.tags))
        shares = []
        for number in range(runs + 1):
            seconds = []
            for spec in (stage.local, stage.local.model_copy(update={"augment": None})):
                context = RoundContext(number, 1, runs + 1)
                start = time.process_time()
                train(local_model, loader, spec, keys, context)
                seconds.append(time.process_time() - start)
            shares.append(1 - seconds[1] / seconds[0])
        print(f"{channels} channels: {statistics.median(shares[1:]):.1%} of a step is augmentation")


if __name__ == "__main__":
    main()
