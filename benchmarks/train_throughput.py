"""Training throughput of resnet50 at 256x128, against the same network trained plainly, in one process run.

Plainly means: float32, contiguous layout, one loader process, torchvision transforms, a loop as in torch's tutorials.
Ours is the loop of `reidcore run` with its defaults. Both read the same JPEG files of 256x128 pixels, compute the same
losses. The figure to quote is the ratio.

    python benchmarks/train_throughput.py [--steps 3] [--batch 64]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from attrs import evolve
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50
from torchvision.transforms import v2

from reidcore import load_recipe
from reidcore.assemble import assemble, find_precision, read_data
from reidcore.builtin.modules.pairs import pairwise_distance
from reidcore.loop import fit

INSTANCES = 4


def draw(root: Path, identities: int, images: int) -> None:
    """Write smooth random JPEG files of 256x128 in the `folder` form."""
    random = np.random.default_rng(0)
    (root / "train").mkdir()
    for identity in range(identities):
        for number in range(images):
            coarse = Image.fromarray(random.integers(0, 256, (16, 8, 3), dtype=np.uint8))
            image = coarse.resize((128, 256), Image.Resampling.BICUBIC)
            image.save(root / "train" / f"{identity:04d}_c{number % 2}_{number:03d}.jpg", quality=90)


class PlainNet(nn.Module):
    """The strong baseline's network as one would write it by hand."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        net = resnet50(weights=None)
        net.layer4[0].conv2.stride = (1, 1)
        net.layer4[0].downsample[0].stride = (1, 1)
        self.maps = nn.Sequential(*list(net.children())[:-2])
        self.p = nn.Parameter(torch.tensor(3.0))
        self.norm = nn.BatchNorm1d(2048)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(2048, classes, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.maps(x).clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)
        return x, self.classifier(self.norm(x))


class PlainData(Dataset):
    """The files, with torchvision's transforms."""

    def __init__(self, root: Path) -> None:
        self.files = sorted((root / "train").iterdir())
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize((256, 128), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.Pad(10),
                v2.RandomCrop((256, 128)),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                v2.RandomErasing(),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), int(self.files[index].name[:4])


def plain(root: Path, batch: int, steps: int, device: torch.device, identities: int) -> list[float]:
    """Return the seconds of each step of the plain loop."""
    model = PlainNet(identities).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3.5e-4, weight_decay=5e-4)
    loader = iter(DataLoader(PlainData(root), batch, num_workers=1))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        images, labels = (item.to(device) for item in next(loader))
        features, logits = model(images)
        distance = pairwise_distance(features)
        same = labels[:, None] == labels[None, :]
        positive = distance.masked_fill(~same, -torch.inf).amax(1)
        negative = distance.masked_fill(same, torch.inf).amin(1)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1) + F.relu(positive - negative + 0.3).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


class Clock:
    """A logger that notes when each step ends, and ends the run after enough of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.times: list[float] = []

    def log(self, event: dict[str, object]) -> None:
        if event["kind"] == "step":
            self.times.append(time.perf_counter())

    def close(self) -> None: ...


def ours(root: Path, batch: int, steps: int, device: torch.device) -> list[float]:
    """Return the seconds of each step of reidcore's loop."""
    loaded = load_recipe(
        {
            "run": {"name": "throughput", "device": str(device)},
            "train": [{"name": "folder", "root": str(root)}],
            "input": {"height": 256, "width": 128},
            "transform": [{"name": "flip"}, {"name": "pad-crop"}, {"name": "random-erasing"}],
            "sampler": {"identities": batch // INSTANCES, "instances": INSTANCES},
            "backbone": {"name": "resnet50", "weights": "none"},
            "training": {"epochs": 1},
        }
    )
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        data = read_data(loaded)
        keep = batch * (steps + 1)
        data = evolve(
            data, train=evolve(data.train, samples=data.train.samples[:keep], labels=data.train.labels[:keep])
        )
        run = assemble(loaded, data, Path(folder), lambda model, epoch: None)
        run.loggers = [clock]
        fit(run)
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def main() -> None:
    """Measure both in turn and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after one warm-up step")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    precision = find_precision("auto", device)
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, ours in {precision}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = options.batch * (options.steps + 1)
        draw(root, images // INSTANCES, INSTANCES)
        # the plain loop first: ours also sets how the process keeps memory
        seconds = {"plain": plain(root, options.batch, options.steps, device, images // INSTANCES)}
        seconds["reidcore"] = ours(root, options.batch, options.steps, device)
    rates = {name: options.batch / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.2f} images/s (steps of {', '.join(f'{value:.2f}' for value in seconds[name])} s)")
    print(f"ratio: {rates['reidcore'] / rates['plain']:.2f}")


if __name__ == "__main__":
    main()
