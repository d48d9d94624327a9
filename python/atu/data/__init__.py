"""Samples, images, MNIST and augmentation: tensors in and out of the user's hands."""
