"""A grounded answer as people look at it: coloured phrases and masks (Figures 1 and 7)."""
