"""What a streamed run leaves in its folder."""

import torch

from msif.scale.streaming import read_scores


def all_scores(folder):
    """(indices, (queries, documents) scores, norms) of all parts."""
    index, scores = zip(*read_scores(folder))
    return (
        torch.cat(index),
        torch.cat([x.values for x in scores], 1),
        torch.cat([x.norms for x in scores]),
    )
