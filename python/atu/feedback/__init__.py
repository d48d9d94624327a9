"""What the user said: which samples are negative, an oracle or a probe that says it of others, and the positives."""
