"""RA-CNN: the recursion over scales, its attention proposals, losses and phases."""
