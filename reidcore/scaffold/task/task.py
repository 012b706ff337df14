"""The task: what is learned, while the loop says when. N images."""

from reidcore.types import Stream


class Example:
    """Trains the recipe's model with the recipe's losses, on the even and the odd classes in turn."""

    def __init__(self, turn):
        self.turn = turn

    def prepare(self, run):
        """Keep the run: its model, losses, training images (run.train) and target sets (run.targets)."""
        self.run = run

    def round(self, epoch, run):
        """Return the images of the epochs to come, by the name of their stream, or None: as before."""
        if epoch % self.turn and run.streams:
            return None
        chosen = [n for n, label in enumerate(run.train.labels) if label % 2 == epoch // self.turn % 2]
        return {"train": Stream([run.train.samples[n] for n in chosen], run.train.labels[chosen])}

    def losses(self, batches, step):
        """Return the weighted terms, {name: scalar}, for one batch of each stream."""
        batch = batches["train"]
        return self.run.losses(self.run.forward(batch), batch, step)

    def deploy(self):
        """Return the plain model that is evaluated, saved and exported."""
        return self.run.model
