"""Ask, click a word, see where the model looked: in a notebook, and as a page of its own."""
