"""Fills our parameters from tensors, puts them on devices, and keeps them in a folder of ours."""
