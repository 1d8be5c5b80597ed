"""One recipe for each embedded model, and the loop that runs them."""
