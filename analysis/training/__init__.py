"""The training notebook: its settings, the samples that are learnt from, the loss curves."""
