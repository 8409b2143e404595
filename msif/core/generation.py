"""What a language model writes."""

import torch


@torch.no_grad()
def greedy(model, prompts, new_tokens, batch_size=64):
    """Greedy continuations of prompts (lists of token ids): a list of `new_tokens` ids each. Equal lengths go together."""
    found = [None] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        rows = [i for i, p in enumerate(prompts) if len(p) == length]
        for first in range(0, len(rows), batch_size):
            chosen = rows[first : first + batch_size]
            ids = torch.tensor([prompts[i] for i in chosen], device=model.device)
            out = model.generate(
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
