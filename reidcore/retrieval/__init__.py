"""Retrieval: embeddings in, rankings and figures out. Needs no recipe, no files and no model.

    from reidcore.retrieval import Features, evaluate, rank

Everything works on blocks of query rows; the whole matrix of distances is never held. Importing this package
does not import torch.
"""

from reidcore.retrieval.evaluation import Result, evaluate, rank
from reidcore.retrieval.problem import Problem
from reidcore.retrieval.protocol import Coverage, coverage
from reidcore.retrieval.ranking import RankingBlock
from reidcore.retrieval.reciprocal import jaccard
from reidcore.types import Features

__all__ = ["Coverage", "Features", "Problem", "RankingBlock", "Result", "coverage", "evaluate", "jaccard", "rank"]
