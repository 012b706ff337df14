"""The metric: a tally over blocks of ranked queries. Q queries; R matches of one query."""

import numpy as np


class Example:
    """Mean over queries of the share of matches among the R first images, for a query with R matches."""

    def __init__(self, label):
        self.label = label

    def start(self, problem):
        """Begin a tally for the queries of `problem`."""
        return Tally(self.label, len(problem.query))


class Tally:
    """One value a query, NaN where there is none (yet): blocks and processes cannot change the mean."""

    def __init__(self, label, queries):
        self.label, self.values = label, np.full(queries, np.nan)

    def update(self, block):
        """Take in a block: block.ranks has, of each query in block.rows, the (R,) ranks of its matches, from 0."""
        for place, ranks in zip(range(block.rows.start, block.rows.stop), block.ranks, strict=True):
            if len(ranks):  # a query without a match says nothing about the model
                self.values[place] = np.mean(ranks < len(ranks))

    def merge(self, other):
        """Take in the values that another process has of other queries."""
        np.copyto(self.values, other.values, where=~np.isnan(other.values))

    def result(self):
        """Return the figures by name, fractions of 1."""
        return {self.label: float(np.nanmean(self.values))}

    @property
    def per_query(self):
        """{name: (Q,)}, what the figures are made of."""
        return {self.label: self.values}
