"""The explorer: a page on which a grounded answer is clicked through, without a model and without a kernel."""
