"""The exporter, and what runs its file. B batch, H W image, D embedding."""

import torch
from reidcore.export import Inference


class Example:
    """Writes `model.pt2` with torch.export. The core compares what it computes with the model, and keeps no file that
    is further away than `tolerance`."""

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def export(self, model, images, folder):
        """Write `model`, in evaluation mode, into `folder`; images: (B, H, W, 3) uint8 RGB, real ones."""
        device = next(model.parameters()).device
        given = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
        with torch.no_grad():
            program = torch.export.export(
                Inference(model), (given,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
            )
        file = folder / "model.pt2"
        torch.export.save(program, file)
        return Artifact(file, device)


class Artifact:
    """An exported model that can be run."""

    def __init__(self, file, device):
        self.files, self.device = [file], device
        self.model = torch.export.load(file).module()

    def run(self, images):
        """(B, H, W, 3) uint8 RGB -> {"embedding": (B, D) float32, ...}."""
        with torch.no_grad():
            found = self.model(torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device))
        return {name: values.float().cpu().numpy() for name, values in found.items()}
