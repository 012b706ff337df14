"""A student's step with a teacher, over its step alone and the teacher's forward pass.

All three on the same images in memory, in one run, with Adam and cross-entropy and triplet losses; the kd losses are
those of equation 10, logits (L1) and PKT, or all that `--losses` names. The ratio is that of the least times.

    python benchmarks/kd.py [--student resnet18] [--teacher resnet50] [--losses kd-logits kd-pkt]
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import torch

from reidcore.assemble import build_losses, find_precision, keep_freed_memory
from reidcore.model import FrozenModel
from reidcore.networks import build_model, freeze
from reidcore.recipe import load_recipe
from reidcore.types import Batch, Step

CLASSES = 100


def recipe(backbone: str, height: int, width: int, losses: list[str]) -> Any:
    """Return the recipe of a student or of the teacher."""
    taught = [{"name": name, "teacher": "teacher"} for name in losses]
    return load_recipe(
        {
            "run": {"name": "benchmark"},
            "train": [{"name": "synthetic"}],
            "input": {"height": height, "width": width},
            "backbone": {"name": backbone, "weights": "none"},
            "loss": [{"name": "cross-entropy"}, {"name": "triplet"}, *taught],
        }
    ).recipe


class Student:
    """A model with its losses and optimizer."""

    def __init__(self, its: Any, teacher: FrozenModel, precision: torch.dtype) -> None:
        self.model = build_model(its, CLASSES).train()
        self.losses = build_losses(its, self.model, CLASSES, frozen=lambda run, weights: teacher).train()
        parameters = [*self.model.parameters(), *self.losses.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4)
        self.precision, self.number = precision, 0

    def step(self, batch: Batch) -> None:
        """Take a step."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            output = self.model(batch.images, self.losses.maps)
        self.number += 1
        torch.stack(list(self.losses(output, batch, Step(self.number, 0)).values())).sum().backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--losses", nargs="+", default=["kd-logits", "kd-pkt"])
    for name, value in (("height", 128), ("width", 64), ("batch", 64), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    size = options.height, options.width
    keep_freed_memory()  # as a run does
    precision = find_precision("auto", torch.device("cpu"))
    its = recipe(options.teacher, *size, [])
    teacher = freeze(build_model(its, CLASSES), its, precision=precision)
    alone = Student(recipe(options.student, *size, []), teacher, precision)
    taught = Student(recipe(options.student, *size, options.losses), teacher, precision)
    labels = torch.arange(options.batch) // 4
    images = torch.randint(0, 256, (options.batch, 3, *size), dtype=torch.uint8)
    batch = Batch(images, labels, torch.zeros_like(labels), labels)
    works = {
        "student": lambda: alone.step(batch),
        "teacher, forward": lambda: teacher.output(batch, Step(0, 0)),
        "distillation": lambda: taught.step(batch),
    }
    least = dict.fromkeys(works, float("inf"))
    for number in range(options.rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:  # the first round starts threads and chooses kernels
                least[name] = min(least[name], time.perf_counter() - started)
    print(f"{options.teacher} teaches {options.student} by {', '.join(options.losses)}")
    where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {precision}"
    print(f"{options.batch} images of {size[0]}x{size[1]}, {where}")
    for name, seconds in least.items():
        print(f"{name:17} {seconds * 1e3:7.0f} ms")
    ratio = least["distillation"] / (least["student"] + least["teacher, forward"])
    print(f"ratio {ratio:.3f} of distillation over student and teacher")


if __name__ == "__main__":
    main()
