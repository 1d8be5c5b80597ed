"""Table 2: are the things that an answer names the right ones, and are their masks where they are?"""
