"""Single heads against the mean over all (Figure 5, Table 7)."""
