"""What the paper claims, measured on the embedded models: counts of single scenes, and where attention rests."""
