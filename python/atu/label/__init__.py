"""The labelling page: samples are marked in a browser on this machine, kept in a folder, and unlearned from there."""
