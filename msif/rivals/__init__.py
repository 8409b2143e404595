"""Other ways to say which documents mattered: text search, hidden states, gradient methods, other
inverses."""
