"""The sampler: a pure function of seed and epoch, so that a run can be resumed. N images."""

import numpy as np
from reidcore.errors import DataError


class Example:
    """Identities in random order, as many as fill a batch, each with all of its images. The last batch may be small."""

    def __init__(self, labels, images, seed):
        labels = np.asarray(labels)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        self.images, self.seed = images, seed
        if not self.members:
            raise DataError("sampler: found no labelled image; expected some to train on")

    def __len__(self):
        """Return the number of batches an epoch: the same in each, so that schedules know the end."""
        return max(1, sum(map(len, self.members)) // self.images)

    def batches(self, epoch):
        """Yield the positions of the images of each batch, (n,), those of one identity together."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.members))
        ends = np.cumsum([len(self.members[number]) for number in order])
        batch = np.minimum((ends - 1) * len(self) // ends[-1], len(self) - 1)  # as equal as whole identities allow
        for number in range(len(self)):
            chosen = order[batch == number]
            if not len(chosen):  # an identity with more images than a batch left none for this one
                chosen = random.choice(order, 1)
            yield np.concatenate([random.permutation(self.members[one]) for one in chosen])
