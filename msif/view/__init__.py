"""What a reader sees of scores: the explorer page, one score taken apart, text with colours."""
