"""Table 1: do the words of a description point at the right pixels?"""
