"""Records in; numbers, tables and figures out. Nothing here loads a model: where one is needed it is passed in.

Frames and units are core's: points are (x, y) in pixels of the original image, sizes are (H, W), layers and heads
count from 0.
"""
