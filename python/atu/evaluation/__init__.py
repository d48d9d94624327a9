"""What was unlearned and what it cost, measured afterwards by judges; and attacks on the result."""
