"""OSNet as torchreid has it: its files' names and shapes, and its forward pass by torch's functions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def checkpoint(form: str = "", width: float = 1.0, classes: int = 7) -> dict[str, Tensor]:
    """Return the state dict of a network of torchreid. form: "", "ibn_" or "ain_", as in its name."""
    random = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def tensor(name: str, *shape: int) -> None:
        fan = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape, generator=random) * (1.5 / fan) ** 0.5

    def norm(name: str, channels: int, running: bool = True) -> None:
        parts = {"weight": (0.5, 1.5), "bias": (-0.2, 0.2)}
        if running:
            parts |= {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        for part, (low, high) in parts.items():
            state[f"{name}.{part}"] = torch.rand(channels, generator=random) * (high - low) + low

    def convolution(name: str, channels: int, out: int, kernel: int = 1) -> None:
        tensor(f"{name}.conv.weight", out, channels, kernel, kernel)
        norm(f"{name}.bn", out)

    def lite(name: str, channels: int) -> None:
        tensor(f"{name}.conv1.weight", channels, channels, 1, 1)
        tensor(f"{name}.conv2.weight", channels, 1, 3, 3)
        norm(f"{name}.bn", channels)

    def block(name: str, channels: int, out: int, inside: bool, after: bool) -> None:
        middle = out // 4
        convolution(f"{name}.conv1", channels, middle)
        for depth, letter in enumerate("abcd", start=1):
            for number in range(depth):
                plain = f"conv2{letter}.{number}" if depth > 1 else "conv2a"
                lite(f"{name}.{f'conv2.{depth - 1}.layers.{number}' if form == 'ain_' else plain}", middle)
        for layer, (before, behind) in {"fc1": (middle, middle // 16), "fc2": (middle // 16, middle)}.items():
            tensor(f"{name}.gate.{layer}.weight", behind, before, 1, 1)
            tensor(f"{name}.gate.{layer}.bias", behind)
        tensor(f"{name}.conv3.conv.weight", out, middle, 1, 1)
        if not inside:
            norm(f"{name}.conv3.bn", out)
        if channels != out:
            convolution(f"{name}.downsample", channels, out)
        if inside or after:
            norm(f"{name}.IN", out, running=False)

    channels, *widths = (int(width * published) for published in (64, 256, 384, 512))
    tensor("conv1.conv.weight", channels, 3, 7, 7)
    norm("conv1.bn", channels, running=not form)
    searched = {2: (True, True), 3: (False, True), 4: (True, False)}
    for stage, out in enumerate(widths, start=2):
        for index in range(2):
            inside = form == "ain_" and searched[stage][index]
            block(f"conv{stage}.{index}", out if index else channels, out, inside, form == "ibn_" and stage == 2)
        if stage < 4:
            convolution(f"pool{stage}.0" if form == "ain_" else f"conv{stage}.2.0", out, out)
        channels = out
    convolution("conv5", channels, channels)
    tensor("fc.0.weight", 512, channels)
    tensor("fc.0.bias", 512)
    norm("fc.1", 512)
    tensor("classifier.weight", classes, 512)
    tensor("classifier.bias", classes)
    return state


class Published:
    """The forward pass of the published network, from a state dict with its names or torchreid's."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state, self.used = state, set()

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name]

    def conv(self, x: Tensor, name: str, **options: int) -> Tensor:
        bias = self.get(f"{name}.bias") if f"{name}.bias" in self.state else None
        return F.conv2d(x, self.get(f"{name}.weight"), bias, **options)

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        if f"{name}.running_mean" not in self.state:
            return F.instance_norm(x, weight=weight, bias=bias)
        return F.batch_norm(x, self.get(f"{name}.running_mean"), self.get(f"{name}.running_var"), weight, bias)

    def lite(self, x: Tensor, name: str) -> Tensor:
        x = self.conv(x, f"{name}.conv1")
        return self.norm(self.conv(x, f"{name}.conv2", padding=1, groups=x.shape[1]), f"{name}.bn").relu()

    def gate(self, x: Tensor, name: str) -> Tensor:
        hidden = self.conv(F.adaptive_avg_pool2d(x, 1), f"{name}.gate.fc1").relu()
        return self.conv(hidden, f"{name}.gate.fc2").sigmoid()

    def block(self, x: Tensor, name: str) -> Tensor:
        """Norm by instance inside the branch where it has no batch norm, else after the shortcut if at all."""
        y = self.norm(self.conv(x, f"{name}.conv1.conv"), f"{name}.conv1.bn").relu()
        total = torch.zeros_like(y)
        for letter, depth in {"a": 1, "b": 2, "c": 3, "d": 4}.items():
            stream = y
            for number in range(depth):
                plain = f"{name}.conv2{letter}" + (f".{number}" if depth > 1 else "")
                searched = f"{name}.conv2.{depth - 1}.layers.{number}"
                stream = self.lite(stream, searched if f"{searched}.bn.weight" in self.state else plain)
            total = total + self.gate(stream, name) * stream
        y = self.conv(total, f"{name}.conv3.conv")
        inside = f"{name}.conv3.bn.weight" not in self.state
        y = self.norm(y, f"{name}.IN" if inside else f"{name}.conv3.bn")
        if f"{name}.downsample.conv.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.conv"), f"{name}.downsample.bn")
        y = y + x
        after = not inside and f"{name}.IN.weight" in self.state
        return (self.norm(y, f"{name}.IN") if after else y).relu()

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.conv(images, "conv1.conv", stride=2, padding=3), "conv1.bn").relu()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = {}
        for stage, layer in {"stage1": "conv2", "stage2": "conv3", "stage3": "conv4"}.items():
            x = self.block(self.block(x, f"{layer}.0"), f"{layer}.1")
            if layer != "conv4":
                halving = next(n for n in (f"{layer}.2.0", f"pool{layer[-1]}.0") if f"{n}.conv.weight" in self.state)
                x = self.norm(self.conv(x, f"{halving}.conv"), f"{halving}.bn").relu()
                x = F.avg_pool2d(x, 2)
            maps[stage] = x
        return maps | {"stage4": self.norm(self.conv(x, "conv5.conv"), "conv5.bn").relu()}

    def embedding(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, 512): what torchreid gives in evaluation."""
        x = F.adaptive_avg_pool2d(self.maps(images)["stage4"], 1).flatten(1)
        return self.norm(F.linear(x, self.get("fc.0.weight"), self.get("fc.0.bias")), "fc.1").relu()
