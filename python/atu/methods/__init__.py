"""The methods of unlearning, one file each; `registry` knows them by name."""
