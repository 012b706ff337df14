"""What residual networks are extended with, against the slow formulas."""

import pytest
import torch
from torch import Tensor, nn

from reidcore.layers import InstanceBatchNorm, InstanceNorm, NonLocal, SqueezeExcitation


def randomized(module: nn.Module) -> nn.Module:
    """Give each parameter and statistic a value that an untrained network does not have."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.0)
    return module


@torch.no_grad()
def test_instance_norm_takes_mean_and_variance_of_each_channel_of_each_image() -> None:
    torch.manual_seed(0)
    norm = randomized(InstanceNorm(3))
    x = torch.randn(2, 3, 4, 5)
    for training in (True, False):
        y = norm.train(training)(x)
        for image in range(2):
            for channel in range(3):
                values = x[image, channel]
                unit = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
                expected = unit * norm.weight[channel] + norm.bias[channel]
                torch.testing.assert_close(y[image, channel], expected)


@pytest.mark.parametrize(("channels", "half"), [(6, 3), (7, 3)])
@torch.no_grad()
def test_the_first_half_is_instance_normed_and_the_rest_batch_normed(channels: int, half: int) -> None:
    torch.manual_seed(0)
    norm = randomized(InstanceBatchNorm(channels))
    x = torch.randn(2, channels, 4, 5)
    y = norm(x)
    assert (norm.IN.num_features, norm.BN.num_features) == (half, channels - half)
    for channel in range(channels):
        part, place, over = (norm.IN, channel, (1, 2)) if channel < half else (norm.BN, channel - half, (0, 1, 2))
        values = x[:, channel]
        unit = values - values.mean(over, keepdim=True)
        unit = unit / (values.var(over, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(y[:, channel], unit * part.weight[place] + part.bias[place])


@torch.no_grad()
def test_squeeze_excitation_scales_channels_by_a_function_of_their_means() -> None:
    torch.manual_seed(0)
    se = SqueezeExcitation(32)
    x = torch.randn(2, 32, 4, 5)
    assert [tuple(parameter.shape) for parameter in se.parameters()] == [(2, 32), (32, 2)]
    first, second = se.fc[0].weight, se.fc[2].weight
    for image in range(2):
        means = torch.stack([x[image, channel].mean() for channel in range(32)])
        scale = torch.sigmoid(second @ torch.relu(first @ means))
        for channel in range(32):
            torch.testing.assert_close(se(x)[image, channel], x[image, channel] * scale[channel])


def non_local_by_definition(block: NonLocal, x: Tensor) -> Tensor:
    """One image, (C, H, W): every position looks at every position."""
    positions = [(row, column) for row in range(x.shape[1]) for column in range(x.shape[2])]

    def project(convolution: nn.Conv2d, vector: Tensor) -> Tensor:
        return convolution.weight[:, :, 0, 0] @ vector + convolution.bias

    convolution, norm = block.W
    z = x.clone()
    for here in positions:
        y = torch.zeros(block.g.out_channels, dtype=x.dtype)
        for there in positions:
            affinity = project(block.theta, x[:, *here]) @ project(block.phi, x[:, *there])
            y += affinity * project(block.g, x[:, *there]) / len(positions)
        unit = (project(convolution, y) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        z[:, *here] += unit * norm.weight + norm.bias
    return z


@pytest.mark.parametrize("inner", [1, 2])
@torch.no_grad()
def test_the_non_local_block_is_its_equation(inner: int) -> None:
    torch.manual_seed(0)
    block = randomized(NonLocal(4, inner)).double().eval()
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(block(x), torch.stack([non_local_by_definition(block, image) for image in x]))


def test_the_non_local_block_starts_as_the_identity_and_learns() -> None:
    torch.manual_seed(0)
    block, x = NonLocal(4, 2), torch.randn(2, 4, 3, 2)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.W[1].weight.grad.abs().min() > 0
