"""Losses over the batches of several processes."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from reidcore.builtin.modules.pairs import Triplet
from reidcore.loop import Losses
from reidcore.types import Batch, Output, Step, World

LABELS = [0, 0, 1, 1, 1, 2, 2]
SHARES = [slice(0, 5), slice(5, 7)]  # not equal, as whole identities make them


def images() -> torch.Tensor:
    return torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def loss_of(net: nn.Linear, rows: slice, world: World) -> torch.Tensor:
    x = net(images()[rows])
    labels = torch.tensor(LABELS)[rows]
    batch = Batch(torch.zeros(len(x), 3, 1, 1), labels, labels, labels)
    losses = Losses([(1.0, Triplet(2.0, "before", False, ["v"], gather=True))], world)
    return losses(Output(x, {"v": x}, {"v": x}, {}), batch, Step(number=0, epoch=0))["triplet"]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    net = network()
    loss = loss_of(net, SHARES[rank], World(rank, 2))
    loss.backward()
    gradient = net.weight.grad
    assert gradient is not None
    dist.all_reduce(gradient)  # what data-parallel training does with gradients: their mean
    torch.save({"loss": loss.detach(), "gradient": gradient / 2}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_loss_that_gathers_has_the_value_and_the_gradient_of_the_whole_batch(tmp_path):
    net = network()
    expected = loss_of(net, slice(None), World())
    expected.backward()
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["loss"], expected.detach())
        torch.testing.assert_close(found["gradient"], net.weight.grad)
