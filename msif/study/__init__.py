"""What the notebooks of the study compute. Nothing outside imports it."""
