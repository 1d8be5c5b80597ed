"""The embedded spaCy pipeline: a grammar of English captions, and the pipeline trained on its sentences."""
