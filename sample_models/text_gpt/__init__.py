"""A byte-level GPT trained on the World English Bible."""
