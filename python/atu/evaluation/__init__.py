"""What was unlearned and what it cost, measured afterwards by judges; and what can be got back out of the result."""
