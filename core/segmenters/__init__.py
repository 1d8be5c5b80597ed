"""Promptable segmentation models behind one interface, a file each; `core.masks.Segmenter` speaks to all of them."""
