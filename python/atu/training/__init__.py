"""The training step, the loop round it, the run folder it saves to, and how a generator is scored on the way."""
