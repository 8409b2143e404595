"""What a language model writes."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int = 64,
) -> list[list[int]]:
    """Greedy continuations of prompts (token ids): a list of `new_tokens` ids each.

    Prompts of equal length go together, `batch_size` at a time.
    """
    found: list[list[int]] = [[]] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        rows = [i for i, p in enumerate(prompts) if len(p) == length]
        for first in range(0, len(rows), batch_size):
            chosen = rows[first : first + batch_size]
            ids = torch.tensor([prompts[i] for i in chosen], device=model.device)
            out = model.generate(  # type: ignore[operator]  # transformers has it in a mixin
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            for i, row in zip(chosen, out[:, length:].tolist()):
                found[i] = row
    return found
