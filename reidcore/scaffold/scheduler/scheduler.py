"""The schedule: a pure function of the step, so that a run can be resumed."""


class Example:
    """1 at first, then 1 - sqrt(x), where x is the share of the rest that is over (Hägele et al. 2024)."""

    def __init__(self, flat, steps):
        self.flat, self.steps = flat, max(1, steps)

    def __call__(self, step):
        """Return the factor on the optimizer's learning rate at `step`, counted from 0."""
        done = (step / self.steps - self.flat) / (1 - self.flat)
        return 1 - min(1, max(0, done)) ** 0.5
