"""Tables 4 and 7: what normalisation, the segmenter's prompt and single heads give, all from one captured run."""
